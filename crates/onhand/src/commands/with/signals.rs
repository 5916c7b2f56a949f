//! Passes signals that ask to stop on to the command.

use std::sync::atomic::{AtomicI32, Ordering};

/// The command's process id; 0 while there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// The signal that came while there was no command; 0 for none.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// From now on SIGINT, SIGTERM and SIGHUP go to the command. Without one the first is noted, and a
/// second ends this process.
pub(crate) fn pass_on() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: a zeroed sigaction is a valid one; the handler calls what a handler may call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Names the command; one signal that came just before is passed on.
pub(crate) fn to(pid: u32) {
    CHILD.store(pid as i32, Ordering::SeqCst);
    if pid > 0
        && let signal @ 1.. = RECEIVED.swap(0, Ordering::SeqCst)
    {
        send(pid as i32, signal);
    }
}

/// The signal that came while there was no command.
pub(crate) fn received() -> Option<u8> {
    u8::try_from(RECEIVED.load(Ordering::SeqCst)).ok().filter(|signal| *signal > 0)
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let child = CHILD.load(Ordering::SeqCst);
    if child == 0 {
        if RECEIVED.swap(signal, Ordering::SeqCst) != 0 {
            // SAFETY: _exit may be called in a handler.
            unsafe { libc::_exit(128 + signal) };
        }
        return;
    }
    // A terminal's Ctrl-C has reached the command already: it is in our process group. Only what
    // another process sent to us alone (SI_USER and the like, 0 and below) is passed on.
    // SAFETY: the kernel hands a handler of SA_SIGINFO a valid siginfo.
    if unsafe { (*info).si_code } <= 0 {
        send(child, signal);
    }
}

fn send(child: i32, signal: i32) {
    // SAFETY: kill touches no memory, and may be called in a handler.
    unsafe { libc::kill(child, signal) };
}
