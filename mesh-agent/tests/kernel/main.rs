//! The programs in a real kernel, driven through the agent's own `kernel` module. Needs root and BPF.

mod fill;
mod flows;
mod homes;
mod place;
mod splice;
mod table_swaps;
