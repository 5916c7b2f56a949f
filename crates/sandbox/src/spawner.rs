//! The one thread that forks every child process.
//!
//! Linux sends a child its death signal when the *thread* that forked it ends, not the process.
//! Tests and async runtimes call from threads that come and go, so children are forked from a
//! thread that ends only with the process.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock};
use std::thread;

struct Request {
    command: Command,
    reply: Sender<io::Result<Child>>,
}

/// Starts `command` in a process group of its own, so that the terminal's Ctrl-C reaches this
/// process alone, which then stops its children in order. When this process ends, however it
/// does, the child gets `death_signal` (on Linux).
pub(crate) fn spawn(mut command: Command, death_signal: i32) -> io::Result<Child> {
    command.process_group(0);
    die_with_parent(&mut command, death_signal);
    let (reply, answer) = mpsc::channel();
    let ended = || io::Error::other("the thread that starts processes has ended");
    spawner()?.send(Request { command, reply }).map_err(|_| ended())?;
    answer.recv().map_err(|_| ended())?
}

fn spawner() -> io::Result<Sender<Request>> {
    static SPAWNER: OnceLock<Mutex<Option<Sender<Request>>>> = OnceLock::new();
    let mut sender = SPAWNER.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(sender) = &*sender {
        return Ok(sender.clone());
    }
    let (requests, inbox) = mpsc::channel::<Request>();
    thread::Builder::new().name("spawner".into()).spawn(move || {
        for mut request in inbox {
            let child = request.command.spawn();
            // A caller that stopped waiting must not end this thread.
            let _ = request.reply.send(child);
        }
    })?;
    *sender = Some(requests.clone());
    Ok(requests)
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command, death_signal: i32) {
    let parent = std::process::id() as libc::pid_t;
    // SAFETY: only async-signal-safe calls between fork and exec. The closure runs after the
    // change of user, which would clear the death signal.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, death_signal as libc::c_ulong) == -1 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the signal was set.
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command, _death_signal: i32) {}
