//! Reading a file again: after a failure of the producer, or where an earlier process stopped.

use super::{FileReader, Step};
use crate::read::{
    position::{Checkpoint, Position, digest},
    source::Source,
};

impl FileReader {
    /// Resumes where an earlier process stopped, if the file is still the same up to there.
    pub(crate) fn resume_from(&mut self, checkpoint: Checkpoint) {
        // before the first row there is nothing to resume
        self.replay = (checkpoint.accepted + checkpoint.refused > 0).then_some(checkpoint);
    }

    /// Goes back to what is acknowledged. A file must be opened again. `compare`: what was read may have
    /// been changed since, and is compared first.
    pub(crate) fn rewind(&mut self, compare: bool) {
        self.source.take_if(|source| !matches!(source, Source::Stream(_)));
        self.in_flight = 0;
        self.acknowledged = self.resume_at().clone();
        self.before_last_line = None;
        if self.replay.is_none() && (self.gzip || compare) {
            self.resume_from(self.checkpoint());
            if self.replay.is_none() {
                self.acknowledged = Position::default();
            }
        }
        self.position = if self.replay.is_some() { Position::default() } else { self.acknowledged.clone() };
        self.target.take_if(|target| self.position.byte < target.table.begin);
    }

    /// Whether the part that was read before is still being compared.
    pub(crate) fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Compares the next bytes with what was read before.
    pub(super) fn compare(&mut self, bytes: &[u8]) -> Step {
        self.position.advance(bytes);
        let Some(replay) = &self.replay else { return Step::More };
        let changed = || Step::Changed(format!("its first {} bytes were changed", replay.byte));
        if self.position.byte > replay.byte || (bytes.is_empty() && self.position.byte < replay.byte) {
            return changed();
        }
        if self.position.byte < replay.byte {
            return Step::More;
        }
        if digest(&self.position.hash) != replay.sha256 {
            return changed();
        }
        self.position.line = replay.line;
        self.position.inside_long_line = replay.inside_long_line;
        self.position.accepted = replay.accepted;
        self.position.refused = replay.refused;
        self.position.refused_bytes = replay.refused_bytes;
        self.acknowledged = self.position.clone();
        self.replay = None;
        Step::More
    }
}
