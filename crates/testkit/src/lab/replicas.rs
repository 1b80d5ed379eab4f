//! The addresses of replicas, which change when replicas do.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use super::{Gateway, lock};

/// The addresses that clients may connect to. They change when replicas do.
#[derive(Clone, Debug, Default)]
pub struct Replicas(Arc<Mutex<Vec<SocketAddr>>>);

impl Replicas {
    /// The public addresses of these gateways.
    pub fn of<'a>(gateways: impl IntoIterator<Item = &'a Gateway>) -> Self {
        let replicas = Self::default();
        replicas.set(gateways);
        replicas
    }

    /// Replaces the addresses by those of these gateways.
    pub fn set<'a>(&self, gateways: impl IntoIterator<Item = &'a Gateway>) {
        self.set_addresses(gateways.into_iter().map(|gateway| gateway.public).collect());
    }

    /// Replaces the addresses.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *lock(&self.0) = addresses;
    }

    /// All addresses.
    pub fn all(&self) -> Vec<SocketAddr> {
        lock(&self.0).clone()
    }

    /// The address for `turn`.
    pub fn at(&self, turn: usize) -> SocketAddr {
        let addresses = lock(&self.0);
        addresses[turn % addresses.len()]
    }
}
