//! Files that somebody goes on writing after they were finished. Where the system can't tell who
//! writes, a long pause looks like the end; the writer then writes on in `done/`, and what it
//! writes there would be missing in silence.

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::source::Identity;

/// How many of the last finished files are looked at, and for how long.
const MOST: usize = 300;
const LONG: Duration = Duration::from_secs(60);
/// The least time between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// A finished file.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    /// How much of it was read: all there was.
    pub(crate) bytes: u64,
}

/// The files that were finished last.
#[derive(Debug, Default)]
pub(crate) struct Grown {
    files: VecDeque<(Instant, Place)>,
    looked: Option<Instant>,
}

impl Grown {
    pub(crate) fn note(&mut self, place: Place) {
        self.files.truncate(MOST - 1);
        self.files.push_front((Instant::now(), place));
    }

    /// Says which have grown.
    pub(crate) fn look(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now.duration_since(looked) < EVERY) {
            return;
        }
        self.looked = Some(now);
        self.files.retain(|(finished, Place { path, identity, bytes })| {
            let Ok(metadata) = fs::metadata(path) else { return false };
            let same = Identity::from(&metadata) == *identity;
            if same && metadata.len() > *bytes {
                tracing::error!(
                    "{} was written to after it was finished: what stands from byte {bytes} on was not imported; \
                     when it is written to its end, drop it into input/ again (rows that are known count once)",
                    path.display()
                );
                return false;
            }
            same && now.saturating_duration_since(*finished) < LONG
        });
    }
}
