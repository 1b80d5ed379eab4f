//! Requests to issuers and authorizing backends.

use std::time::Duration;

use reqwest::Url;

/// Longest wait for a backend that is asked for keys or for an authorization.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Makes requests to backends. The process has to have chosen its cryptography for TLS before.
///
/// # Errors
/// When the certificates of the system cannot be read.
pub fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        // A redirect is no answer.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

/// The answer of a URL. An answer that is larger is cut.
pub(crate) async fn fetch(
    client: &reqwest::Client,
    url: Url,
    max: usize,
) -> reqwest::Result<Vec<u8>> {
    let mut response = client.get(url).send().await?.error_for_status()?;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        text.extend_from_slice(&chunk);
        if text.len() > max {
            // A cut text is invalid JSON, so parsing reports an error.
            break;
        }
    }
    Ok(text)
}

/// An error and its causes, without the URL, which may contain a secret.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    let kind = match error.status() {
        Some(status) => format!("answered {status}"),
        None if error.is_timeout() => "did not answer in time".to_owned(),
        None if error.is_connect() => "cannot be reached".to_owned(),
        None => "did not answer".to_owned(),
    };
    kind + &text
}
