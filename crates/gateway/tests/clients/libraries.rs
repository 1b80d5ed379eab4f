//! The tested libraries.

use crate::tools::Tool;

/// A library for event streams.
#[derive(Debug)]
pub(crate) struct Library {
    /// Its name in the docs and for the programs.
    pub(crate) name: &'static str,
    pub(crate) tool: Tool,
    /// Its name in the lock file.
    pub(crate) package: &'static str,
}

const fn library(name: &'static str, tool: Tool, package: &'static str) -> Library {
    Library {
        name,
        tool,
        package,
    }
}

/// All libraries. `requests` and `fetch` are used with a parser of event streams.
pub(crate) const LIBRARIES: &[Library] = &[
    library("r3labs", Tool::Go, "github.com/r3labs/sse/v2"),
    library("go-sse", Tool::Go, "github.com/tmaxmax/go-sse"),
    library(
        "launchdarkly",
        Tool::Go,
        "github.com/launchdarkly/eventsource",
    ),
    library(
        "donovanhide",
        Tool::Go,
        "github.com/donovanhide/eventsource",
    ),
    library("resty", Tool::Go, "resty.dev/v3"),
    library("eventsource", Tool::Node, "eventsource"),
    library("eventsource-client", Tool::Node, "eventsource-client"),
    library("fetch", Tool::Node, "eventsource-parser"),
    library("undici", Tool::Node, "undici"),
    library("httpx-sse", Tool::Python, "httpx-sse"),
    library("requests-sse", Tool::Python, "requests-sse"),
    library("sseclient-py", Tool::Python, "sseclient-py"),
    library("okhttp", Tool::Jvm, "okhttp-sse"),
    library("launchdarkly-java", Tool::Jvm, "okhttp-eventsource"),
    library("webclient", Tool::Jvm, "spring-webflux"),
    library("jersey", Tool::Jvm, "jersey-media-sse"),
];
