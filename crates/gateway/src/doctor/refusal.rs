//! Answers to a request to subscribe that are no stream.

use axum::http::{StatusCode, header};
use tokio::time::{Instant, timeout_at};

use super::{ANSWER, Failure, Route, hints, wrong};

/// Number of requests that are sent to count refusals.
const COUNTED: usize = 10;
/// Bytes of an answer that are read, and characters that are shown.
const READ: usize = 2048;
const SHOWN: usize = 80;

/// Why there is no stream.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The answer was something else. An `EventSource` stops for good.
    Answer(Answer),
    /// There was no connection, or it was closed without an answer. An `EventSource` tries again.
    Failed(String),
    /// No answer arrived in time.
    Silent,
}

/// An answer that is no stream.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    kind: String,
    /// As in `Server`.
    server: String,
    /// The beginning of its text.
    says: String,
}

impl Answer {
    /// Reads the beginning of the answer, within the time that an answer may take in total.
    pub(super) async fn read(mut response: reqwest::Response, kind: String, end: Instant) -> Self {
        let status = response.status();
        let server = response.headers().get(header::SERVER);
        let server = server.and_then(|server| server.to_str().ok());
        let server = server.unwrap_or_default().to_owned();
        let mut text = Vec::new();
        while text.len() < READ
            && let Ok(Ok(Some(chunk))) = timeout_at(end, response.chunk()).await
        {
            text.extend_from_slice(&chunk);
        }
        Self {
            status,
            kind,
            server,
            says: words(&String::from_utf8_lossy(&text)),
        }
    }

    /// Whether a balancer answers so when it reaches no replica.
    fn is_of_a_balancer(&self) -> bool {
        (502..=504).contains(&self.status.as_u16())
    }

    /// Status, type, sender and text.
    pub(super) fn describe(&self) -> String {
        let Self {
            status,
            kind,
            server,
            says,
        } = self;
        let mut text = status.to_string();
        if !kind.is_empty() {
            text += &format!(" ({kind})");
        }
        if !server.is_empty() {
            text += &format!(" by {server}");
        }
        if !says.is_empty() {
            text += &format!(", \"{says}\"");
        }
        text
    }

    fn advice(&self) -> &'static str {
        match self.status.as_u16() {
            200 => "this is no event stream: is the path the gateway's?",
            204 => "the channel is complete: give another --channel",
            401 | 403 => {
                "give a credential, as in --header 'Authorization: Bearer ...', or another --channel"
            }
            404 => "the path does not lead to the gateway",
            502..=504 => {
                "the balancer reaches no replica: what do its health checks of /readyz say?"
            }
            300..=399 => {
                "an EventSource follows, but every reconnect pays for it: give the final URL"
            }
            _ => "the gateway does not answer so to a request to subscribe",
        }
    }
}

impl Refusal {
    fn finding(&self) -> Failure {
        const WHAT: &str = "stream";
        match self {
            Self::Answer(answer) => wrong(
                WHAT,
                format!("answered {}: {}", answer.describe(), answer.advice()),
            ),
            Self::Failed(error) => wrong(WHAT, error.clone()),
            Self::Silent => wrong(
                WHAT,
                format!(
                    "no answer within {ANSWER:?}. Either nobody is there, or the answer is held back until there is more of \
                     it: {}",
                    hints::UNBUFFER
                ),
            ),
        }
    }
}

impl Route {
    /// Explains a refusal. If it is a balancer's, more streams are requested to count how many it refuses.
    pub(super) async fn explain(&self, refusal: Refusal) -> Failure {
        let Refusal::Answer(answer) = &refusal else {
            return refusal.finding();
        };
        if !answer.is_of_a_balancer() {
            return refusal.finding();
        }
        let (mut asked, mut refused) = (1, 1);
        for _ in 0..COUNTED {
            let Ok(client) = self.client() else {
                break;
            };
            asked += 1;
            match self.ask(&client, "").await {
                Err(Refusal::Answer(answer)) if answer.is_of_a_balancer() => refused += 1,
                Err(Refusal::Silent) => break,
                _ => {}
            }
        }
        let answered = format!(
            "{refused} of {asked} requests were answered {}",
            answer.describe()
        );
        let advice = match refused == asked {
            true => answer.advice().to_owned(),
            false => format!(
                "the balancer reaches some replicas, and sends others to one that is gone. There an EventSource stops for \
                 good: {}",
                hints::RETRY
            ),
        };
        wrong("stream", format!("{answered}: {advice}"))
    }
}

/// The beginning of a text or a page, without tags.
fn words(page: &str) -> String {
    let mut text = String::new();
    let mut is_tag = false;
    for char in page.chars() {
        match char {
            '<' => is_tag = true,
            '>' if is_tag => {
                is_tag = false;
                text.push(' ');
            }
            char if !is_tag => text.push(char),
            _ => {}
        }
    }
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn a_page_is_shown_without_its_tags() {
        let page = "<html><body><h1>503 Service Unavailable</h1>\nNo server is available.\n</body></html>\n";
        assert_eq!(
            words(page),
            "503 Service Unavailable No server is available."
        );
        assert_eq!(words("unavailable\n"), "unavailable");
        assert_eq!(words(&"x".repeat(500)).len(), 80);
    }
}
