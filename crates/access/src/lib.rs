//! Access: decides from the credentials of a request on a [`Grant`] or a refusal.
//!
//! A channel is readable only if a rule allows it. The first credential of a request decides, and no other. If it is
//! wrong, the request is refused, even if another rule would allow it. Public channels need no credential, and a wrong
//! one is no obstacle there.
//!
//! [`AccessFlags`] and [`File`] are the rules as written. [`Config`] has the checked rules. [`Builder`] puts them in
//! force, and [`Access`] decides. This crate knows the headers of a request, and channels as names. It does not know
//! hubs, Redis or servers: a store of tickets is a [`TicketLookup`]. Start reading at [`Access::subscriber`].

mod access;
mod backend;
mod builder;
mod caller;
mod canary;
mod clock;
mod config;
mod credential;
mod denied;
mod forward;
mod grant;
mod headers;
mod invalid;
mod jwks;
mod jwt;
mod keys;
mod origins;
mod pattern;
mod revoked;
mod runtime;
mod secret;
mod ticket;

pub use self::{
    access::{Access, UrlCredentials},
    backend::client,
    builder::Builder,
    caller::{Caller, Principal},
    canary::CanaryCredential,
    clock::now,
    config::{AccessFlags, Config, File, Forward, Jwt, PublishRule},
    credential::Credential,
    denied::{Denied, TokenRefused},
    forward::OnFailure,
    grant::{Grant, Holder, MAX_SUBJECT},
    invalid::Invalid,
    jwks::Refresh,
    origins::Origins,
    pattern::Patterns,
    revoked::Revoked,
    runtime::MainRuntime,
    secret::{Hidden, Secret},
    ticket::TicketLookup,
};
