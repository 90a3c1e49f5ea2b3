//! SIGINT, SIGTERM and SIGHUP, as something that can be waited for.
//!
//! A second one while the first is still being dealt with ends the process at once: somebody is in a hurry, and
//! everything here survives a kill.

use crate::exit::{Context, Failure};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The exit status after a second signal, as shells count: 128 and SIGINT.
const HURRIED: i32 = 130;

/// The signals, taken over for the rest of the process.
pub(crate) struct Signals {
    receiver: Receiver<&'static str>,
}

impl Signals {
    /// Takes them over. Once in a process.
    pub(crate) fn take() -> Result<Signals, Failure> {
        let doing = || "signals cannot be taken";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context(doing)?;
        let guard = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt()).context(doing)?;
        let mut terminate = signal(SignalKind::terminate()).context(doing)?;
        let mut hangup = signal(SignalKind::hangup()).context(doing)?;
        drop(guard);
        let (sender, receiver) = channel();
        let listen = move || {
            for seen in 0.. {
                let name = runtime.block_on(async {
                    tokio::select! {
                        _ = interrupt.recv() => "SIGINT",
                        _ = terminate.recv() => "SIGTERM",
                        _ = hangup.recv() => "SIGHUP",
                    }
                });
                if seen > 0 {
                    std::process::exit(HURRIED);
                }
                // Nobody may be waiting any more; then the second one is what counts.
                let _ = sender.send(name);
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(listen).context(doing)?;
        Ok(Signals { receiver })
    }

    /// Waits for one, at most so long; its name.
    pub(crate) fn wait_for(&self, at_most: Duration) -> Option<&'static str> {
        match self.receiver.recv_timeout(at_most) {
            Ok(name) => Some(name),
            Err(RecvTimeoutError::Timeout) => None,
            // The thread ends with the process and not before.
            Err(RecvTimeoutError::Disconnected) => Some("the end of the thread that waits for signals"),
        }
    }
}
