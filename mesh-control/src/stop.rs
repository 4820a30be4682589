//! How the end of the server reaches every task.

use tokio::sync::watch;

/// Returns when the server stops, or is gone.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The value is not held: its lock must not cross an await.
    let _ = stop.wait_for(|stop| *stop).await;
}
