//! Why a transaction failed, and so what to do about it.

use anyhow::anyhow;
use sqlx::error::ErrorKind;

/// Says of itself whether to retry, to bisect or to stop.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// What was assumed is no longer so (another writer was faster, an id is known already):
    /// roll back and apply again at once, with the next attempt's number.
    #[error("what was assumed is no longer so")]
    Stale,
    /// The batch needs more memory than there is for one: apply it in halves.
    #[error("the batch is too large for one transaction")]
    TooLarge,
    /// Another transaction has held a lock for too long: end those of this service whose process
    /// no longer answers, then as [`ApplyError::Transient`].
    #[error("{0:#}")]
    Blocked(anyhow::Error),
    /// It will pass (connection lost, deadlock, disk full): roll back, wait, apply again.
    #[error("{0:#}")]
    Transient(anyhow::Error),
    /// Some record of the batch cannot be applied: find it by halves and refuse it alone.
    #[error("{0:#}")]
    Batch(anyhow::Error),
    /// Nothing will help but a person: stop the service.
    #[error("{0:#}")]
    Fatal(anyhow::Error),
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> ApplyError {
        use sqlx::Error;
        match &error {
            Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                match (code.as_ref(), code.get(..2).unwrap_or_default(), database.kind()) {
                    // lock_not_available: see `lock_timeout` in runtime::postgres
                    ("55P03", ..) => ApplyError::Blocked(error.into()),
                    // a sequence is exhausted: every further record would be refused as its own fault
                    ("2200H", ..) => ApplyError::Fatal(error.into()),
                    // the same row twice in a statement, data exceptions, constraints, checks of views,
                    // limits such as an index row's size, what triggers raise: a record's fault
                    (_, "21" | "22" | "23" | "44" | "54" | "P0", _)
                    | (.., ErrorKind::UniqueViolation | ErrorKind::CheckViolation) => {
                        // what a refusal says, so without the words that sqlx puts around it
                        ApplyError::Batch(anyhow!("{}", database.message()))
                    }
                    // syntax, no such table or column, no rights: ours, or the database's owner's
                    (_, "42" | "0A" | "28" | "3D" | "3F", _) => ApplyError::Fatal(error.into()),
                    // connection, rollback, resources, operator, system: it will pass
                    _ => ApplyError::Transient(error.into()),
                }
            }
            Error::Io(_)
            | Error::Tls(_)
            | Error::Protocol(_)
            | Error::PoolTimedOut
            | Error::PoolClosed
            | Error::WorkerCrashed
            | Error::BeginFailed => ApplyError::Transient(error.into()),
            Error::Encode(_) | Error::InvalidArgument(_) => ApplyError::Batch(error.into()),
            _ => ApplyError::Fatal(error.into()),
        }
    }
}
