//! Requests as they are counted, each worker for itself: a series a [`Key`], in a table of bounded size.
//!
//! What does not fit is counted in one overflow series, never dropped. A series that nobody has used for an hour goes.
//! A key is numbers: names of routes are numbered where a worker meets them first ([`RouteNumbers`]), so that counting
//! allocates nothing once a series is there.
//!
//! Units: microseconds, bytes. Cost: one uncontended lock and one look-up a request.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use parking_lot::Mutex;

use super::hash::Quick;
use super::stats::{Direction, Spoken};

/// Upper bounds of the latency histogram, microseconds; the last bucket has none.
pub const BUCKETS_US: [u64; 15] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000, 60_000_000,
];

/// Series of a worker, beyond which the overflow series counts.
pub const SERIES: usize = 4096;
/// Names of routes that a worker tells apart; those beyond are one.
const ROUTES: usize = 4096;
/// Milliseconds after which an unused series goes.
const IDLE_MS: u64 = 3_600_000;
/// Of the caller nothing is proved (inbound).
pub const UNPROVED: u32 = u32::MAX;
/// Number of the routes beyond [`ROUTES`], and their name.
const OVERFLOW: (u32, &str) = (1, "overflow");

/// What a series counts, as a worker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// See [`RequestKey::source`].
    pub source: u32,
    /// See [`RequestKey::service`].
    pub service: u32,
    /// Number of its route, this worker's; 0: none.
    pub route: u32,
    /// See [`RequestKey::status`].
    pub status: u16,
    /// See [`RequestKey::grpc`].
    pub grpc: u8,
    /// In or out.
    pub direction: Direction,
    /// Protocol.
    pub spoken: Spoken,
    /// See [`RequestKey::reason`].
    pub reason: &'static str,
}

/// The same, as everybody does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// Source workload; 0: outside; [`UNPROVED`]: nothing proves who it is.
    pub source: u32,
    /// Destination service: the route's backend, not its parent; 0: none was found.
    pub service: u32,
    /// HTTP status; 0: none was sent (TCP, or the connection broke first).
    pub status: u16,
    /// gRPC's code; [`mesh_core::outcome::NO_GRPC`]: none.
    pub grpc: u8,
    /// In or out.
    pub direction: Direction,
    /// Protocol.
    pub spoken: Spoken,
    /// The route's name; empty: none.
    pub route: Arc<str>,
    /// Why the agent refused or cut it (`ProxyError::reason`); empty: it did not.
    pub reason: &'static str,
}

impl RequestKey {
    fn named(key: &Key, route: Arc<str>) -> Self {
        let Key { source, service, status, grpc, direction, spoken, reason, .. } = *key;
        Self { source, service, status, grpc, direction, spoken, route, reason }
    }
}

/// What one request adds to its series.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// How long it took, microseconds.
    pub us: u64,
    /// Bytes of its body.
    pub received: u64,
    /// Of its response's.
    pub sent: u64,
}

/// A series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// Requests (TCP: connections) that ended.
    pub count: u64,
    /// Their durations, summed.
    pub sum_us: u64,
    /// Bytes of their bodies.
    pub received: u64,
    /// Bytes of their responses' bodies.
    pub sent: u64,
    /// How many fell in each bucket (not cumulative); the last has no upper bound.
    pub buckets: [u64; BUCKETS_US.len() + 1],
}

impl Series {
    fn record(&mut self, one: &Measured) {
        self.count += 1;
        self.sum_us += one.us;
        self.received += one.received;
        self.sent += one.sent;
        let bucket = BUCKETS_US.iter().position(|&b| one.us <= b).unwrap_or(BUCKETS_US.len());
        self.buckets[bucket] += 1;
    }

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum_us += other.sum_us;
        self.received += other.received;
        self.sent += other.sent;
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
    }
}

/// A series, and when it was last counted on.
#[derive(Debug, Default)]
struct Row {
    series: Series,
    used: u64,
}

type Quickly = BuildHasherDefault<Quick>;
type Table = HashMap<Key, Box<Row>, Quickly>;

/// The series of one worker.
#[derive(Debug, Default)]
pub struct Requests {
    table: Mutex<(Table, Series)>,
    /// Names of routes by number, as [`RouteNumbers`] gives them.
    routes: Mutex<Vec<Arc<str>>>,
}

impl Requests {
    /// Counts one request that ended at `now` (milliseconds of the worker's clock).
    pub fn record(&self, key: &Key, one: &Measured, now: u64) {
        let (table, overflow) = &mut *self.table.lock();
        if let Some(row) = table.get_mut(key) {
            row.series.record(one);
            row.used = now;
            return;
        }
        if table.len() >= SERIES {
            expire(table, now);
        }
        if table.len() >= SERIES {
            overflow.record(one);
        } else {
            let mut row = Box::new(Row { used: now, ..Row::default() });
            row.series.record(one);
            table.insert(*key, row);
        }
    }

    /// Lets go of series that nobody uses.
    pub fn sweep(&self, now: u64) {
        expire(&mut self.table.lock().0, now);
    }

    /// Adds them to others; those that found no room to `rest`.
    pub fn merge_into(&self, all: &mut HashMap<RequestKey, Series>, rest: &mut Series) {
        let (table, overflow) = &*self.table.lock();
        let routes = self.routes.lock();
        let name = |route: u32| match route {
            0 => Arc::default(),
            number => routes.get(number as usize).cloned().unwrap_or_else(|| OVERFLOW.1.into()),
        };
        for (key, row) in table {
            all.entry(RequestKey::named(key, name(key.route))).or_default().add(&row.series);
        }
        rest.add(overflow);
    }
}

fn expire(table: &mut Table, now: u64) {
    table.retain(|_, row| now.saturating_sub(row.used) < IDLE_MS);
}

/// Numbers of routes' names, one worker's. A name that a snapshot holds is found by where it lies, without reading it.
#[derive(Default)]
pub struct RouteNumbers(RefCell<Numbers>);

#[derive(Default)]
struct Numbers {
    by_place: HashMap<usize, u32, Quickly>,
    /// Held so that a place stays a name's.
    held: Vec<Arc<str>>,
    by_name: HashMap<Arc<str>, u32>,
    /// Numbers that may be given again.
    free: Vec<u32>,
}

impl RouteNumbers {
    /// The number of a route.
    pub fn number(&self, name: &Arc<str>, of: &Requests) -> u32 {
        let numbers = &mut *self.0.borrow_mut();
        let place = Arc::as_ptr(name).cast::<u8>() as usize;
        if let Some(number) = numbers.by_place.get(&place) {
            return *number;
        }
        let number = numbers.by_name.get(name).copied().unwrap_or_else(|| numbers.add(name, of));
        // Every change of routes brings new places for the same names.
        if numbers.held.len() >= ROUTES * 2 {
            numbers.by_place.clear();
            numbers.held.clear();
        }
        numbers.held.push(name.clone());
        numbers.by_place.insert(place, number);
        number
    }

    /// The name that a number stands for.
    pub fn name(&self, number: u32, of: &Requests) -> Arc<str> {
        if number == 0 {
            Arc::default()
        } else {
            of.routes.lock().get(number as usize).cloned().unwrap_or_default()
        }
    }
}

impl Numbers {
    fn add(&mut self, name: &Arc<str>, of: &Requests) -> u32 {
        if self.by_name.len() >= ROUTES {
            self.let_go(of);
        }
        let mut names = of.routes.lock();
        if names.is_empty() {
            names.extend([Arc::default(), OVERFLOW.1.into()]);
        }
        if self.by_name.len() >= ROUTES {
            return OVERFLOW.0;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            names.push(Arc::default());
            names.len() as u32 - 1
        });
        names[number as usize] = name.clone();
        self.by_name.insert(name.clone(), number);
        number
    }

    /// Forgets names that no series counts any more.
    fn let_go(&mut self, of: &Requests) {
        let used: HashSet<u32> = of.table.lock().0.keys().map(|key| key.route).collect();
        let Self { by_name, by_place, held, free } = self;
        by_name.retain(|_, number| {
            let keep = used.contains(number);
            if !keep {
                free.push(*number);
            }
            keep
        });
        by_place.clear();
        held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::{Counters, merge};
    use super::*;
    use mesh_core::outcome::NO_GRPC;

    fn key(source: u32) -> Key {
        Key {
            source,
            service: 1,
            status: 200,
            grpc: NO_GRPC,
            direction: Direction::Out,
            spoken: Spoken::Http1,
            route: 0,
            reason: "",
        }
    }

    fn took(us: u64) -> Measured {
        Measured { us, received: 1, sent: 10 }
    }

    #[test]
    fn what_does_not_fit_is_counted_as_overflow() {
        let requests = Requests::default();
        for n in 0..SERIES as u32 + 5 {
            requests.record(&key(n), &took(700), 1);
        }
        requests.record(&key(0), &took(70_000_000), 1);
        let stats = merge([(&Counters::default(), &requests), (&Counters::default(), &requests)].into_iter());
        assert_eq!(stats.requests.len(), SERIES);
        assert_eq!(stats.overflow.count, 10);
        let (_, first) = stats.requests.iter().find(|(k, _)| k.source == 0).unwrap();
        assert_eq!((first.count, first.buckets[2], first.buckets[15]), (4, 2, 2));
        assert_eq!((first.received, first.sent), (4, 40));
    }

    #[test]
    fn idle_series_make_room() {
        let requests = Requests::default();
        for n in 0..SERIES as u32 {
            requests.record(&key(n), &took(1), 1);
        }
        requests.record(&key(UNPROVED), &took(1), IDLE_MS + 1);
        let stats = merge([(&Counters::default(), &requests)].into_iter());
        assert_eq!((stats.requests.len(), stats.overflow.count), (1, 0));
        requests.sweep(IDLE_MS * 3);
        assert!(merge([(&Counters::default(), &requests)].into_iter()).requests.is_empty());
    }

    #[test]
    fn names_of_routes_keep_their_numbers() {
        let (requests, numbers) = (Requests::default(), RouteNumbers::default());
        let (a, b): (Arc<str>, Arc<str>) = ("d/a/0".into(), "d/b/0".into());
        let (one, two) = (numbers.number(&a, &requests), numbers.number(&b, &requests));
        assert_ne!(one, two);
        // A new snapshot has the same names elsewhere.
        let again: Arc<str> = String::from("d/a/0").into();
        assert_eq!((numbers.number(&again, &requests), numbers.number(&a, &requests)), (one, one));
        requests.record(&Key { route: two, ..key(1) }, &took(1), 1);
        let stats = merge([(&Counters::default(), &requests)].into_iter());
        assert_eq!(&*stats.requests[0].0.route, "d/b/0");
        assert_eq!((&*numbers.name(one, &requests), &*numbers.name(0, &requests)), ("d/a/0", ""));
    }

    #[test]
    fn names_beyond_the_bound_are_one_until_others_go() {
        let (requests, numbers) = (Requests::default(), RouteNumbers::default());
        let names: Vec<Arc<str>> = (0..ROUTES + 3).map(|n| format!("d/r/{n}").into()).collect();
        for name in &names {
            let route = numbers.number(name, &requests);
            requests.record(&Key { route, ..key(1) }, &took(1), 1);
        }
        let stats = merge([(&Counters::default(), &requests)].into_iter());
        let beyond = stats.requests.iter().filter(|(key, _)| &*key.route == OVERFLOW.1).count();
        assert!(beyond <= 1 && stats.requests.len() <= SERIES, "{beyond}");
        requests.sweep(IDLE_MS * 2);
        let late: Arc<str> = "d/late/0".into();
        let route = numbers.number(&late, &requests);
        assert_ne!(route, OVERFLOW.0);
        assert_eq!(numbers.name(route, &requests), late);
    }
}
