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
                match (code.get(..2).unwrap_or_default(), database.kind()) {
                    // the same row twice in a statement, data exceptions, constraints, checks of views,
                    // limits such as an index row's size, what triggers raise: a record's fault
                    ("21" | "22" | "23" | "44" | "54" | "P0", _)
                    | (_, ErrorKind::UniqueViolation | ErrorKind::CheckViolation) => {
                        // what a refusal says, so without the words that sqlx puts around it
                        ApplyError::Batch(anyhow!("{}", database.message()))
                    }
                    // syntax, no such table or column, no rights: ours, or the database's owner's
                    ("42" | "0A" | "28" | "3D" | "3F", _) => ApplyError::Fatal(error.into()),
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
