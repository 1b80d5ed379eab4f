//! The gateway's promises, tested from outside with real replicas, a real Redis and real clients.
//!
//! Each module is a set of stories. They do not use the gateway's code, only its command line, its ports, the keys that
//! its documentation names, and signals.

mod access;
mod bad_input;
mod balancers;
mod dev;
mod docs;
mod doctor;
mod drain;
mod fair_share;
mod greedy;
mod greedy_http;
mod history;
mod limits;
mod measure;
mod migrate;
mod openapi;
mod operations;
mod output;
mod prometheus;
mod protocol;
mod publish;
mod recorder;
mod redis_cluster;
mod redis_faults;
mod redis_refusals;
mod redis_sentinel;
mod redis_tls;
mod redis_users;
mod reload;
mod resume;
mod slow_client;
mod support;
mod traces;
mod transport;
mod unix_socket;
mod warm;
