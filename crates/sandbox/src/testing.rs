//! What the tests of several crates share.

use std::{future::Future, time::Duration};

/// How long a condition may take to become true.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits for something that must come true.
///
/// # Panics
/// If it takes longer than [`WAIT_TIMEOUT`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_TIMEOUT, future).await.unwrap_or_else(|_| panic!("not in {WAIT_TIMEOUT:?}: {what}"))
}

/// Waits until a condition is true.
///
/// # Panics
/// If it takes longer than [`WAIT_TIMEOUT`].
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
    .await;
}
