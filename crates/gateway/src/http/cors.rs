//! CORS: lets pages of the listed sites read answers.

use std::time::Duration;

use access::Origins;
use axum::http::{Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Time for which browsers cache the answer to a preflight request. No browser accepts a longer one.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// None if no other site may.
pub(super) fn layer(origins: Origins) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allow = AllowOrigin::predicate(move |origin, _| origins.allow(origin.as_bytes()));
    let layer = CorsLayer::new()
        .allow_origin(allow)
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST])
        // Frameworks and tracing add headers of their own. Headers that the gateway does not know do no harm.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, header::WWW_AUTHENTICATE])
        .max_age(MAX_AGE);
    Some(layer)
}
