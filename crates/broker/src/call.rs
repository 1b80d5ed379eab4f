//! `Call`: a call of the function library, with every key that it touches.
//!
//! Redis Cluster finds the node of a call by its keys, and refuses it while one of them moves to another node. So a
//! call declares all of them, although the library derives the names of most from the first.

use std::collections::BTreeSet;

use redis::Cmd;
use strum::{IntoStaticStr, VariantArray};

use crate::names::{CANDIDATES, CLOCK, ENDS, IDS, IN_SYNC, LEASE, LOG, Names, PAST};

/// The functions that are called from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", prefix = "ssegw_")]
pub(crate) enum Function {
    Record,
    Append,
    Attach,
    History,
    Newest,
    Subscribe,
    Listen,
    Acquire,
    Renew,
    StepDown,
    Release,
    Forsake,
    Republish,
    Candidate,
    Handshake,
    Retire,
    Process,
    Migrate,
    Export,
    Import,
    Relay,
}

impl Function {
    /// The word in metrics and answers. It is stable, even if the name in the code changes.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Commands of Redis itself, as far as they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "UPPERCASE")]
pub(crate) enum PlainCommand {
    Eval,
    Set,
    GetDel,
    Wait,
}

impl PlainCommand {
    /// The word in metrics and answers. It is stable, even if the name in the code changes.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Function {
    pub(crate) fn only_reads(self) -> bool {
        matches!(self, Self::History | Self::Newest | Self::Export)
    }

    /// Whether only the command `migrate` calls it.
    pub(crate) fn migrates(self) -> bool {
        matches!(
            self,
            Self::Migrate | Self::Export | Self::Import | Self::Relay
        )
    }

    /// The keys of the partition that it touches. The library recognizes the partition by the first.
    fn partition_keys(self) -> &'static [&'static str] {
        match self {
            Self::Record => &[CLOCK, PAST, LEASE, ENDS],
            Self::Append => &[CLOCK, PAST, ENDS],
            Self::Attach | Self::History | Self::Export | Self::Import | Self::Relay => {
                &[CLOCK, PAST]
            }
            Self::Migrate => &[CLOCK, LEASE, ENDS],
            Self::Renew => &[CLOCK, LEASE, IN_SYNC, ENDS],
            Self::Acquire | Self::StepDown | Self::Release | Self::Forsake | Self::Handshake => {
                &[CLOCK, LEASE, IN_SYNC]
            }
            Self::Listen => &[CLOCK, IN_SYNC],
            Self::Candidate => &[CLOCK, CANDIDATES],
            Self::Newest | Self::Republish | Self::Process => &[CLOCK],
            // About the server, whichever partitions it holds.
            Self::Retire | Self::Subscribe => &[],
        }
    }

    /// The beginnings of the keys of each channel.
    fn channel_keys(self) -> &'static [&'static str] {
        match self {
            Self::Record
            | Self::Append
            | Self::Attach
            | Self::History
            | Self::Export
            | Self::Import
            | Self::Relay => &[LOG, IDS],
            Self::Newest => &[IDS],
            _ => &[],
        }
    }
}

/// A call that can be repeated.
pub(crate) struct Call<'a> {
    names: &'a Names,
    pub(crate) function: Function,
    pub(crate) partition: u16,
    keys: Vec<String>,
    args: Vec<&'a [u8]>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(names: &'a Names, function: Function, partition: u16) -> Self {
        let keys = function.partition_keys().iter();
        Self {
            names,
            function,
            partition,
            keys: keys.map(|key| names.name(partition, key)).collect(),
            args: Vec::new(),
        }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, arg: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.args.push(arg.as_ref());
        self
    }

    /// Declares the keys of these channels. A channel may be given more than once.
    pub(crate) fn of_channels<'c>(mut self, channels: impl IntoIterator<Item = &'c str>) -> Self {
        let channels: BTreeSet<&str> = channels.into_iter().collect();
        for channel in channels {
            for kind in self.function.channel_keys() {
                self.keys
                    .push(self.names.name(self.partition, kind) + channel);
            }
        }
        self
    }

    /// Declares the key that holds the result for an idempotency key.
    pub(crate) fn of_idempotency_key(mut self, channel: &str, key: &str) -> Self {
        let key = self.names.idempotency(self.partition, channel, key);
        self.keys.push(key);
        self
    }

    /// Declares these keys, which have names of their own.
    pub(crate) fn of_keys(mut self, keys: impl IntoIterator<Item = String>) -> Self {
        self.keys.extend(keys);
        self
    }

    /// As a command.
    pub(crate) fn command(&self) -> Cmd {
        let mut command = Cmd::new();
        let is_reading = self.function.only_reads();
        command.arg(if is_reading { "FCALL_RO" } else { "FCALL" });
        command.arg(self.function.as_str());
        self.keys_of(&mut command);
        self.args_of(&mut command);
        command
    }

    /// As a plain script of the same text: for a Redis that takes no writes.
    pub(crate) fn script(&self, text: &str) -> Cmd {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(text);
        self.keys_of(&mut command);
        command.arg(self.function.as_str());
        self.args_of(&mut command);
        command
    }

    fn keys_of(&self, command: &mut Cmd) {
        command.arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
    }

    fn args_of(&self, command: &mut Cmd) {
        for arg in &self.args {
            command.arg(*arg);
        }
    }
}
