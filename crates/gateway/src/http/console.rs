//! The console at `/`: one page to watch, publish, cut and resume with, while developing.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router, extract,
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing,
};
use serde::Deserialize;

use crate::access::Secret;

const PAGE: &str = include_str!("../console.html");
/// Where the page keeps what only a demonstration tells it.
const TOKEN: &str = r#"<meta name="publish-token" content="">"#;
const KILL: &str = r#"<meta name="kill" content="off">"#;
/// The page has all it needs in itself, and reaches nobody but the gateway that it came from.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page may do.
#[derive(Clone, Debug)]
pub(crate) enum Console {
    /// What any client may.
    Plain,
    /// It knows the token of publishers, and may end the replica as if it was killed: for `./dev up`.
    Demo {
        token: Option<Secret>,
        replica: Arc<str>,
    },
}

#[derive(Deserialize)]
struct Victim {
    replica: String,
}

impl Console {
    pub(crate) fn router(self) -> Router {
        let page: Arc<str> = self.page().into();
        let show = async move || {
            let headers = [
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::CACHE_CONTROL, "no-store"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::REFERRER_POLICY, "no-referrer"),
            ];
            (headers, Html(page.to_string()))
        };
        let router = Router::new().route("/", routing::get(show));
        let Self::Demo { replica, .. } = self else {
            return router;
        };
        let kill = async move |headers: HeaderMap,
                               extract::Query(victim): extract::Query<Victim>| {
            // Another site's page cannot send this without asking first.
            if headers.get("x-console").is_none_or(|value| value != "kill") {
                return StatusCode::FORBIDDEN.into_response();
            }
            if *victim.replica != *replica {
                // A balancer has chosen another one.
                return StatusCode::CONFLICT.into_response();
            }
            tracing::warn!("killed from the console");
            std::process::abort();
        };
        let router = router.route("/console/kill", routing::post(kill));
        router.layer(middleware::from_fn(at_home))
    }

    fn page(&self) -> String {
        match self {
            Self::Plain => PAGE.to_owned(),
            Self::Demo { token, .. } => {
                let token = token.as_ref().map_or("", Secret::as_str);
                let token = token
                    .replace('&', "&amp;")
                    .replace('"', "&quot;")
                    .replace('<', "&lt;");
                PAGE.replace(TOKEN, &TOKEN.replace("\"\"", &format!("\"{token}\"")))
                    .replace(KILL, &KILL.replace("off", "on"))
            }
        }
    }
}

/// A page of another site, whose name its owner has made to mean this machine, is of the same origin to a browser: it could
/// read the token.
async fn at_home(request: extract::Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    if host.is_some_and(|host| is_home(host.host())) {
        return next.run(request).await;
    }
    let hint = "this console is for this machine: open it as localhost, or by an address\n";
    (StatusCode::MISDIRECTED_REQUEST, hint).into_response()
}

fn is_home(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demonstration_has_a_token_and_can_kill() {
        let plain = Console::Plain.page();
        assert!(plain.contains(TOKEN) && plain.contains(KILL));
        let demo = Console::Demo {
            token: Some(Secret::from("\"><b>&")),
            replica: "r".into(),
        };
        let page = demo.page();
        assert!(page.contains(r#"<meta name="publish-token" content="&quot;>&lt;b>&amp;">"#));
        assert!(page.contains(r#"<meta name="kill" content="on">"#));
    }
}
