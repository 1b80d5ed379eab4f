//! Environment variables that the flags do not know, or that are empty.

use text::nearest;

/// An environment variable that looks like one of this program but is unknown.
#[derive(Debug)]
pub struct UnknownVariable {
    /// Its name.
    pub name: String,
    /// The known variable that is probably meant.
    pub nearest: Option<String>,
}

/// Environment variables that begin like those of this program but are unknown. Otherwise a misspelled one would be
/// ignored silently. Variables that Kubernetes sets for a Service named `sse-gateway` are skipped.
pub(super) fn unknown(command: &clap::Command) -> Vec<UnknownVariable> {
    let known = || {
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        variables.filter_map(std::ffi::OsStr::to_str)
    };
    let unknown = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.into_string().ok()?;
        let is_ours = name.to_ascii_uppercase().starts_with("SSE_GATEWAY_");
        if !is_ours || known().any(|known| known == name) || is_of_a_service(&name, &value) {
            return None;
        }
        let nearest = nearest(&name, known()).map(str::to_owned);
        Some(UnknownVariable { name, nearest })
    };
    std::env::vars_os().filter_map(unknown).collect()
}

/// An empty variable counts as unset, because templates and Compose files leave unused variables empty. An empty
/// `SSE_GATEWAY_PUBLIC_CHANNELS` means that no channel is public.
pub(super) fn without_empty_variable(argument: clap::Arg) -> clap::Arg {
    let is_empty = argument
        .get_env()
        .and_then(std::env::var_os)
        .is_some_and(|value| value.is_empty());
    match is_empty && argument.get_id() != "public_channels" {
        true => argument.env(None::<&str>),
        false => argument,
    }
}

/// `SSE_GATEWAY_SERVICE_HOST`, `SSE_GATEWAY_PORT=tcp://...`, `SSE_GATEWAY_PORT_8080_TCP_ADDR` and the like.
fn is_of_a_service(name: &str, value: &std::ffi::OsStr) -> bool {
    let is_url = value.to_str().is_some_and(|value| value.contains("://"));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && is_url)
        || ["_TCP", "_UDP", "_SCTP"]
            .iter()
            .any(|protocol| name.contains("_PORT_") && name.contains(protocol))
}
