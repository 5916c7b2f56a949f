//! A file that is read again: after a failure of the producer, or where an earlier process was.

use super::{Reading, Step};
use crate::{
    mark::Mark,
    receipt::{Progress, digest},
};

impl Reading {
    /// Goes on where an earlier process was, if the file is still the same up to there.
    pub(crate) fn go_on_from(&mut self, progress: Progress) {
        // before the first row there is nothing to be saved
        self.replay = (progress.accepted + progress.refused > 0).then_some(progress);
    }

    /// Goes back to what is acknowledged. The file must be opened again. `compare`: what was read
    /// may have been changed, and is compared first.
    pub(crate) fn rewind(&mut self, compare: bool) {
        self.source = None;
        self.in_flight = 0;
        self.durable = self.resume_at().clone();
        self.before_last_line = None;
        if self.replay.is_none() && (self.gzip || compare) {
            self.go_on_from(self.progress("", String::new()));
            if self.replay.is_none() {
                self.durable = Mark::default();
            }
        }
        self.here = if self.replay.is_some() { Mark::default() } else { self.durable.clone() };
        if self.here.byte < self.rows_begin {
            self.rows = None;
            self.rows_begin = 0;
        }
    }

    /// Whether an earlier process's part is still being compared.
    pub(crate) fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Compares a part with what an earlier process read.
    pub(super) fn compare(&mut self, bytes: &[u8]) -> Step {
        self.here.pass(bytes);
        let Some(replay) = &self.replay else { return Step::More };
        let changed = || Step::Changed(format!("its first {} bytes are not what they were", replay.byte));
        if self.here.byte > replay.byte || (bytes.is_empty() && self.here.byte < replay.byte) {
            return changed();
        }
        if self.here.byte < replay.byte {
            return Step::More;
        }
        if digest(&self.here.hash) != replay.sha256 {
            return changed();
        }
        self.here.line = replay.line;
        self.here.inside_long_line = replay.inside_long_line;
        self.here.accepted = replay.accepted;
        self.here.refused = replay.refused;
        self.here.refused_bytes = replay.refused_bytes;
        self.durable = self.here.clone();
        self.replay = None;
        Step::More
    }
}
