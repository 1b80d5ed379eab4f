//! `Alarm`: ends the process in order when one of its parts panics.
//!
//! Without it a replica would stay ready with a worker less, or without the reload of its certificates.

use std::thread;

use tokio::sync::mpsc;

/// Raises the alarm. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Alarm(mpsc::UnboundedSender<String>);

/// Raises the alarm when it is dropped.
pub(crate) struct Guard {
    alarm: Alarm,
    name: String,
}

impl Alarm {
    /// An alarm, and the receiver of its reasons.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Runs work on this runtime. A panic raises the alarm.
    pub(crate) fn watch(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let alarm = self.clone();
        let task = tokio::spawn(work);
        tokio::spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                alarm.raise(format!("{name} panicked"));
            }
        });
    }

    /// For a thread that owns the guard: its end raises the alarm.
    pub(crate) fn guard(&self, name: String) -> Guard {
        let alarm = self.clone();
        Guard { alarm, name }
    }

    fn raise(&self, reason: String) {
        // The receiver is gone once the process is ending.
        let _ending = self.0.send(reason);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let end = if thread::panicking() {
            "panicked"
        } else {
            "ended unexpectedly"
        };
        self.alarm.raise(format!("{} {end}", self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_raises_the_alarm() {
        let (alarm, mut raised) = Alarm::new();
        alarm.watch("one that ends", async {});
        alarm.watch("one that panics", async { panic!("as it should") });
        assert_eq!(raised.recv().await.unwrap(), "one that panics panicked");
    }

    #[test]
    fn a_thread_that_ends_raises_the_alarm() {
        let (alarm, mut raised) = Alarm::new();
        let guard = alarm.guard("worker 0".to_owned());
        let ended = thread::spawn(move || {
            let _guard = guard;
            panic!("as it should");
        });
        ended.join().unwrap_err();
        assert_eq!(raised.blocking_recv().unwrap(), "worker 0 panicked");
        drop(alarm.guard("worker 1".to_owned()));
        assert_eq!(
            raised.blocking_recv().unwrap(),
            "worker 1 ended unexpectedly"
        );
    }
}
