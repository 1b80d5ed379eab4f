//! `Redis`: a short model of the function library for recorders. `replay.rs` compares it with the library.

use std::collections::{BTreeMap, BTreeSet};

use super::{Without, name_of_end, payload_of};
use crate::record::machine::{Content, Effect, Outcome, Reply};

/// The state of one partition.
pub(super) struct Redis {
    without: Without,
    pub(super) lease: Option<String>,
    /// Recorders that have missed nothing.
    pub(super) in_sync: BTreeSet<String>,
    stepped_down: BTreeSet<String>,
    listeners: BTreeMap<String, Listener>,
    subscriptions: u64,
    /// The last append that was carried out.
    appended: Option<(String, u64)>,
    /// How many appends have recorded messages, and the token of the last one.
    appends: (u64, String),
    /// There has been a recorder.
    recording: bool,
    /// An interruption was announced, and no in-sync recorder has acquired the lease since.
    is_announced: bool,
    /// The end that waits.
    pub(super) end: Option<u8>,
    pub(super) log: Vec<u8>,
    /// The digests of the messages that were recorded as a gap.
    pub(super) lost: Vec<String>,
}

/// A recorder that is or was subscribed.
#[derive(Default)]
struct Listener {
    /// Its subscription, and the place of that in the order of barriers.
    subscription: Option<(String, u64)>,
    /// The subscription before.
    before: Option<String>,
}

/// A request to Redis.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// By a recorder.
    Effect(String, Effect),
    /// A recorder is not subscribed any more, and held the lease under this token, if any.
    Release(String, Option<String>),
    /// By a function: the end waits from now on.
    End(u8),
    /// The lease has expired, and these in-sync marks.
    Expire {
        lease: bool,
        marks: BTreeSet<String>,
    },
}

/// The effect of a request.
#[derive(Clone, Debug)]
pub(super) struct Executed {
    pub(super) reply: Reply,
    pub(super) notices: Vec<String>,
    /// Recording was interrupted, and clients receive a gap.
    pub(super) is_interrupted: bool,
}

impl Executed {
    pub(super) fn of(reply: Reply) -> Self {
        Self {
            reply,
            notices: Vec::new(),
            is_interrupted: false,
        }
    }

    fn publishing(self, notice: impl Into<String>) -> Self {
        let notices = [self.notices, vec![notice.into()]].concat();
        Self { notices, ..self }
    }
}

impl Redis {
    pub(super) fn new(without: Without) -> Self {
        Self {
            without,
            lease: None,
            in_sync: BTreeSet::new(),
            stepped_down: BTreeSet::new(),
            listeners: BTreeMap::new(),
            subscriptions: 0,
            appended: None,
            appends: (0, String::new()),
            recording: false,
            is_announced: false,
            end: None,
            log: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Carries out an effect of a recorder. `is_silent`: recorders that subscribed earlier do not count any more.
    pub(super) fn execute(&mut self, from: &str, effect: &Effect, is_silent: bool) -> Executed {
        match effect {
            Effect::Acquire {
                token,
                in_sync,
                preemption,
            } => self.acquire(from, token, *in_sync, *preemption, is_silent),
            Effect::Renew { token } => {
                if self.has_stepped_down(from) || self.lease.as_ref() != Some(token) {
                    return Executed::of(Reply::Renew(Outcome::Denied));
                }
                self.in_sync.insert(from.to_owned());
                Executed::of(Reply::Renew(Outcome::Done))
            }
            Effect::Append {
                token,
                number,
                batch,
            } => {
                if self.lease.as_ref() != Some(token) && self.without != Without::Token {
                    return Executed::of(Reply::Append(Outcome::Denied));
                }
                let last = self.appended.as_ref();
                let is_repeated = last.is_some_and(|(last, at)| last == token && number <= at);
                if is_repeated && self.without != Without::Number {
                    return Executed::of(Reply::Append(Outcome::Done));
                }
                self.appended = Some((token.clone(), *number));
                let lost = batch.iter().filter(|pending| pending.is_tombstone());
                self.lost.extend(lost.map(|pending| pending.digest.clone()));
                for pending in batch {
                    match pending.content {
                        Content::Message(_) => {
                            self.log.push(payload_of(pending).unwrap_or(u8::MAX));
                        }
                        Content::End(_) => {
                            let is_it = |end: &mut u8| name_of_end(*end) == pending.digest;
                            self.log.extend(self.end.take_if(is_it));
                        }
                        Content::Tombstone(_) | Content::Barrier | Content::Recorded => {}
                    }
                }
                if batch.iter().any(|pending| pending.channel().is_some()) {
                    self.appends = (self.appends.0 + 1, token.clone());
                }
                let digests: Vec<_> = batch.iter().map(|pending| &*pending.digest).collect();
                Executed::of(Reply::Append(Outcome::Done)).publishing(digests.join(" "))
            }
            Effect::PublishBarrier { notice } => {
                let name = notice.strip_prefix('?').unwrap_or(notice);
                let subscription = subscription_of(name).to_owned();
                let own = self.listeners.entry(from.to_owned()).or_default();
                let is_late = own.before.as_ref() == Some(&subscription);
                if is_late && self.without != Without::Before {
                    return Executed::of(Reply::PublishBarrier(Outcome::Done));
                }
                self.in_sync.remove(from);
                let known = own.subscription.as_ref().map(|(known, _)| known);
                if known != Some(&subscription) {
                    self.subscriptions += 1;
                    own.end();
                    own.subscription = Some((subscription, self.subscriptions));
                }
                Executed::of(Reply::PublishBarrier(Outcome::Done)).publishing(notice)
            }
            Effect::StepDown { notice } => {
                let has_successor = self.in_sync.iter().any(|in_sync| *in_sync != from);
                if !has_successor && self.without != Without::Successor {
                    return Executed::of(Reply::StepDown(Outcome::Denied));
                }
                self.stepped_down.insert(from.to_owned());
                let held = self.lease.clone().filter(|holder| is_of(holder, from));
                let released = self.release(from, held.as_deref());
                let reply = Reply::StepDown(Outcome::Done);
                Executed { reply, ..released }.publishing(notice)
            }
        }
    }

    fn acquire(
        &mut self,
        from: &str,
        token: &str,
        in_sync: bool,
        preemption: Option<u64>,
        is_silent: bool,
    ) -> Executed {
        let denied = Executed::of(Reply::Acquire(Outcome::Denied));
        let preemption = preemption.filter(|_| match in_sync {
            true => self.without != Without::Preemption,
            false => !matches!(
                self.without,
                Without::Preemption | Without::OutOfSyncPreemption
            ),
        });
        let (appends, appender) = &self.appends;
        let is_late = preemption.is_some_and(|number| number != *appends)
            && subscription_of(appender) != subscription_of(token);
        if is_late && self.without != Without::Late {
            self.in_sync.remove(from);
            let late = Executed::of(Reply::Late);
            return match self.lease.take_if(|holder| is_of(holder, from)) {
                Some(_) => late.publishing("~"),
                None => late,
            };
        }
        let preempts = preemption.is_some();
        if preempts {
            self.stepped_down.remove(from);
        } else if self.has_stepped_down(from) {
            return denied;
        }
        match in_sync {
            true => _ = self.in_sync.insert(from.to_owned()),
            false => _ = self.in_sync.remove(from),
        }
        let held = self.lease.as_ref();
        if held.is_some_and(|holder| !is_of(holder, from) && !preempts) {
            return denied;
        }
        let waits = !in_sync && !preempts;
        if waits && !self.in_sync.is_empty() && self.without != Without::InSync {
            return match self.lease.take() {
                Some(_) => denied.publishing("~"),
                None => denied,
            };
        }
        let listener = self.listeners.get(from);
        let number =
            |listener: &Listener| listener.subscription.as_ref().map(|(_, number)| *number);
        let is_later = listener.and_then(number).is_some_and(|own| {
            let mut others = self.listeners.values().filter_map(number);
            others.any(|other| other < own)
        });
        if waits && is_later && !is_silent {
            self.lease.take_if(|holder| is_of(holder, from));
            return denied;
        }
        self.lease = Some(token.to_owned());
        let fence = match in_sync {
            true => format!("#{token}"),
            false => format!("#{token}{}", self.appends.0),
        };
        let before = std::mem::replace(&mut self.recording, true);
        let is_announced = self.is_announced;
        self.is_announced = !in_sync && (before || is_announced);
        let is_interrupted = !in_sync
            && before
            && !(preempts && is_announced)
            && self.without != Without::Interruption;
        let granted = Executed::of(Reply::Acquire(Outcome::Done)).publishing(fence);
        Executed {
            is_interrupted,
            ..granted
        }
    }

    /// A recorder is not subscribed any more, and holds the lease under this token, if any.
    pub(super) fn release(&mut self, from: &str, token: Option<&str>) -> Executed {
        self.in_sync.remove(from);
        if let Some(own) = self.listeners.get_mut(from) {
            own.end();
        }
        let released = Executed::of(Reply::PublishBarrier(Outcome::Done));
        match self.lease.take_if(|holder| Some(&**holder) == token) {
            Some(_) => released.publishing("~"),
            None => released,
        }
    }

    fn has_stepped_down(&self, name: &str) -> bool {
        self.stepped_down.contains(name) && self.without != Without::Gone
    }
}

impl Listener {
    fn end(&mut self) {
        if let Some((subscription, _)) = self.subscription.take() {
            self.before = Some(subscription);
        }
    }
}

/// Whether a token belongs to this recorder.
fn is_of(token: &str, recorder: &str) -> bool {
    token
        .strip_prefix(recorder)
        .is_some_and(|rest| rest.starts_with(':'))
}

/// The subscription to which a token or a barrier belongs.
fn subscription_of(name: &str) -> &str {
    name.rsplit_once('-')
        .map_or("", |(subscription, _)| subscription)
}
