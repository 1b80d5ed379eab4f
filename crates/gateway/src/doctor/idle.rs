//! Tests a stream that is left idle: whether its heartbeats arrive when they are sent, and why it is cut.

use std::time::{Duration, Instant};

use tokio::{
    pin, select,
    time::{interval, sleep, timeout},
};

use super::{
    Failure, Finding, PROMPT, Route, Verdict, describe, fine,
    hints::{IDLE_TIMEOUTS, TOTAL_LIMITS, UNBUFFER},
    publisher::Publisher,
    wrong,
};

/// No heartbeat can be missing in less: `--heartbeat` is at least a second.
const SILENCE: Duration = Duration::from_millis(900);
/// Heartbeats that are closer together than this were held back and sent together.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Longer than three heartbeats, at their default of 8 s.
const LONG: Duration = Duration::from_secs(30);
/// Time between the events that keep a stream busy, at most.
const BUSY: Duration = Duration::from_secs(1);

/// How a stream did not stay open.
struct Cut {
    after: Duration,
    /// The silence before the cut.
    silence: Duration,
    /// The longest silence before that one.
    survived: Duration,
    how: String,
}

/// Why it was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Silence,
    /// The answer took too long in total.
    Length,
    /// Either of the two; it cannot be determined.
    Either,
}

impl Route {
    /// Whether an idle stream is kept alive, and left alone.
    pub(super) async fn idle(
        &self,
        publisher: Option<&mut Publisher<'_>>,
    ) -> Result<Vec<Finding>, Failure> {
        let mut stream = self.open_anew("").await?;
        let begun = Instant::now();
        let mut beats = Vec::new();
        let mut survived = Duration::ZERO;
        loop {
            let left = self.idle.saturating_sub(begun.elapsed());
            let (comments, heard) = (stream.comments(), stream.heard);
            let how = match timeout(left, stream.read()).await {
                Err(_) => break,
                Ok(Ok(true)) => {
                    survived = survived.max(stream.heard - heard);
                    let events = stream.events.drain(..);
                    let positions = events.filter(|event| event.kind == "gateway.position");
                    let positions = positions.count() as u64;
                    let new = stream.comments().saturating_sub(comments) + positions;
                    beats.extend((0..new).map(|_| stream.heard - begun));
                    continue;
                }
                Ok(Ok(false)) => "it was ended".to_owned(),
                Ok(Err(error)) => describe(&error),
            };
            let cut = Cut {
                after: begun.elapsed(),
                silence: heard.elapsed(),
                survived,
                how,
            };
            let cause = self.cause(&cut, publisher).await;
            return Ok(vec![cut.finding(cause)]);
        }
        let open = format!("a stream without events stayed open for {:.0?}", self.idle);
        Ok(vec![fine("idle", open), heartbeats(self.idle, &beats)])
    }

    /// Why an idle stream was cut. If that is not clear, another stream is kept busy for the same time.
    async fn cause(&self, cut: &Cut, publisher: Option<&mut Publisher<'_>>) -> Cause {
        // A proxy with an idle timeout cuts at the first silence that is long enough.
        if cut.silence < SILENCE || cut.survived > cut.silence + PROMPT {
            return Cause::Length;
        }
        let Some(publisher) = publisher else {
            return Cause::Either;
        };
        let Ok(mut stream) = self.open_anew("").await else {
            return Cause::Either;
        };
        let (mut published, mut came) = (0, 0);
        let mut due = interval(BUSY.min(cut.silence / 4));
        let outlived = sleep(cut.after + cut.after / 10 + 2 * PROMPT);
        pin!(outlived);
        loop {
            select! {
                read = stream.read() => match read {
                    Ok(true) => came += 1,
                    _ => break,
                },
                _ = due.tick() => match publisher.publish().await {
                    Ok(()) => published += 1,
                    Err(_) => return Cause::Either,
                },
                () = &mut outlived => return Cause::Silence,
            }
        }
        // If most events did not arrive, or not one by one, this stream was no busier.
        if came > published / 2 {
            Cause::Length
        } else {
            Cause::Either
        }
    }
}

impl Cut {
    fn finding(&self, cause: Cause) -> Finding {
        let Self {
            after,
            silence,
            how,
            ..
        } = self;
        let advice = match cause {
            Cause::Silence => format!(
                "nothing had come for {silence:.0?}: an idle timeout on the way is shorter than --heartbeat. Raise it \
                 ({IDLE_TIMEOUTS}), or lower --heartbeat"
            ),
            Cause::Length => format!(
                "it was not for silence: somebody limits how long an answer may take in all, and should not \
                 ({TOTAL_LIMITS}), or the replica was told to stop. Clients resume, but reconnect that often"
            ),
            Cause::Either => format!(
                "nothing had come for {silence:.0?}: either an idle timeout on the way is shorter than --heartbeat \
                 ({IDLE_TIMEOUTS}), or somebody limits how long an answer may take in all ({TOTAL_LIMITS}). Which of the \
                 two shows when events can be published"
            ),
        };
        wrong(
            "idle",
            format!("a stream was cut after {after:.0?} ({how}); {advice}"),
        )
    }
}

/// Whether heartbeats arrived when they were sent, given their arrival times. The interval is known from these times
/// only.
fn heartbeats(idle: Duration, beats: &[Duration]) -> Finding {
    const WHAT: &str = "heartbeats";
    let (Some(first), Some(last)) = (beats.first(), beats.last()) else {
        let text = format!(
            "none within {idle:.0?}: either --heartbeat is longer, and --idle has to be, or they are held back: {UNBUFFER}"
        );
        let verdict = if idle < LONG {
            Verdict::Unknown
        } else {
            Verdict::Wrong
        };
        return Finding {
            verdict,
            what: WHAT,
            text,
        };
    };
    let count = beats.len();
    let silence = (*first).max(idle.saturating_sub(*last));
    let gaps = || beats.windows(2).map(|two| two[1] - two[0]);
    if gaps().any(|gap| gap < AT_ONCE) {
        return wrong(
            WHAT,
            format!(
                "{count} of them, and several at once, so that they were held back: {UNBUFFER}"
            ),
        );
    }
    match gaps().max() {
        None if silence >= LONG => wrong(
            WHAT,
            format!(
                "one of them, and nothing for {silence:.0?}: either --heartbeat is longer, and --idle has to be three \
                 times that, or they are held back: {UNBUFFER}"
            ),
        ),
        None => fine(WHAT, "one of them".to_owned()),
        Some(apart) if silence > apart * 3 / 2 + PROMPT => wrong(
            WHAT,
            format!(
                "{count} of them, {apart:.0?} apart at most, and nothing for {silence:.0?}, so that some were held back: \
                 {UNBUFFER}"
            ),
        ),
        Some(apart) => fine(WHAT, format!("{count} of them, {apart:.0?} apart at most")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks when heartbeats that a proxy holds back are called fine, or when heartbeats of some interval are called
    /// wrong.
    #[test]
    fn heartbeats_that_do_not_come_as_they_are_sent_are_held_back() {
        use Verdict::{Fine, Unknown, Wrong};
        for (idle, beats, verdict, says) in [
            (
                65.0,
                &[7.0, 22.0, 37.0, 52.0][..],
                Fine,
                "4 of them, 15s apart",
            ),
            (5.0, &[0.1, 1.1, 2.1, 3.1, 4.1], Fine, "5 of them, 1s apart"),
            // The longest interval, at the worst moment.
            (65.0, &[20.0, 60.0], Fine, "2 of them, 40s apart"),
            (65.0, &[14.0], Wrong, "one of them, and nothing for 51s"),
            (65.0, &[40.0], Wrong, "one of them, and nothing for 40s"),
            (8.0, &[5.0], Fine, "one of them"),
            (65.0, &[], Wrong, "none within 65s"),
            (30.0, &[], Wrong, "none within 30s"),
            (8.0, &[], Unknown, "none within 8s"),
            // A flush each forty seconds, in one piece or not.
            (65.0, &[40.0, 40.0], Wrong, "2 of them, and several at once"),
            (
                65.0,
                &[40.0, 40.001],
                Wrong,
                "2 of them, and several at once",
            ),
            (65.0, &[10.0, 40.0, 40.0, 55.0], Wrong, "several at once"),
            // A buffer that begins later, or ends.
            (
                65.0,
                &[10.0, 25.0],
                Wrong,
                "15s apart at most, and nothing for 40s",
            ),
            (
                65.0,
                &[35.0, 50.0],
                Wrong,
                "15s apart at most, and nothing for 35s",
            ),
        ] {
            let beats: Vec<_> = beats.iter().copied().map(Duration::from_secs_f64).collect();
            let finding = heartbeats(Duration::from_secs_f64(idle), &beats);
            assert_eq!(finding.verdict, verdict, "{beats:?}: {finding}");
            assert!(finding.text.contains(says), "{beats:?}: {finding}");
        }
    }
}
