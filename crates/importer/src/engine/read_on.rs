//! The engine's part that takes a finished file back into `input/`, because it has grown there. Its
//! receipt becomes the record of an end that is begun (see [`crate::finish`]), and then the file is
//! moved back: a crash in between leaves what a crash in the end leaves, and is completed.

use std::{io, path::PathBuf};

use super::Engine;
use crate::{
    directory::{remove, rename_within},
    finish::{begin, complete},
    late_growth::GrownFile,
    names::receipt_name,
    receipt::{Stored, name_to_hex},
    source::FileState,
};

impl Engine {
    /// Takes back files that have grown, to read on where their receipts say.
    pub(super) fn read_on(&mut self) {
        while let Ok(GrownFile { folder, name }) = self.late_growth.found.try_recv() {
            let back = self.directory.input.join(&name);
            if self.numbers.contains_key(&name) || self.ends.is_waiting(&name) || back.symlink_metadata().is_ok() {
                // another file of that name comes first: this one is found again
                continue;
            }
            let path = folder.join(&name);
            let receipt = folder.join(receipt_name(&name));
            let Ok(Some(Stored::Finished(mut finished))) = Stored::read(&receipt) else { continue };
            let Ok(found) = path.metadata() else { continue };
            finished.resume.progress.name = name_to_hex(&name);
            finished.resume.progress.file = name.to_string_lossy().into_owned();
            finished.resume.target = Some(name_to_hex(&name));
            finished.resume.receipt_target = name_to_hex(&receipt_name(&name));
            finished.resume.state.identity = FileState::from(&found).identity;
            // its refused rows have got their name: further ones go to another file
            (finished.resume.refused_target, finished.resume.refused_bytes) = (None, 0);
            let moved = begin(&self.directory, &finished)
                .and_then(|()| remove(&receipt))
                .and_then(|()| rename_within(&path, &back));
            match moved {
                Ok(()) => {
                    let byte = finished.receipt.bytes;
                    tracing::info!("{} has grown since it was finished: reading on at byte {byte}", path.display());
                    self.waiting.push_front(name);
                }
                Err(error) => {
                    self.cannot_read_on(path, &error);
                    if self.directory.progress_of(&name).exists()
                        && let Err(error) = complete(&self.directory, &mut finished)
                    {
                        tracing::error!("{}: {error}", receipt.display());
                    }
                }
            }
        }
    }

    /// Says so once.
    fn cannot_read_on(&mut self, path: PathBuf, error: &io::Error) {
        let shown = path.display().to_string();
        if self.not_read_on.len() < 10_000 && self.not_read_on.insert(path) {
            tracing::error!(
                "{shown} was written to after it was finished, and cannot be moved back to input/ ({error}): when it \
                 is written to its end, move it there"
            );
        }
    }
}
