//! Traces of the simulation, replayed against the library on a real redis-server.

use redis::TlsCertificates;
use testkit::lab::Reply as Answer;

use super::{Executed, Faults, Request, Without, World, name_of_end};
use crate::{
    Server as Address,
    call::{Call, Function},
    library::tests::{Server, words},
    names::{ENDS, IN_SYNC, LEASE, Names, REVOKE},
    record::machine::{Effect, Outcome, Reply},
    wire::{Listener, Push},
};

/// Traces of each kind.
const TRACES: u64 = 60;
/// Milliseconds. Leases and marks expire only at the places in the trace.
const TTL: &str = "600000";
/// Ends the notices of a trace.
const LAST: &str = "last";

/// A trace, and the payloads that were recorded in it.
fn traces() -> Vec<(String, World)> {
    let mut traces = Vec::new();
    for seed in 0..TRACES {
        for (name, faults) in [("all", Faults::All), ("restarts", Faults::Restarts)] {
            let mut world = World::new(seed, Without::Nothing, faults);
            world.trace = Some(Vec::new());
            world.play(seed);
            traces.push((format!("{name} {seed}"), world));
        }
        let mut world = World::new(seed, Without::Nothing, Faults::Cuts);
        world.trace = Some(Vec::new());
        world.play_with_cuts(seed);
        traces.push((format!("cuts {seed}"), world));
    }
    traces
}

/// The words of a request. The library has no call for the end of a time.
fn request(names: &Names, partition: u16, channel: &str, request: &Request) -> Vec<Vec<Vec<u8>>> {
    let call = |function| Call::new(names, function, partition);
    let effect = match request {
        Request::Expire { lease, marks } => {
            let delete = lease.then(|| vec!["DEL".to_owned(), names.name(partition, LEASE)]);
            let key = names.name(partition, IN_SYNC);
            let remove = marks
                .iter()
                .map(|mark| vec!["ZREM".to_owned(), key.clone(), mark.clone()]);
            let commands = delete.into_iter().chain(remove);
            return commands
                .map(|words| words.into_iter().map(String::into_bytes).collect())
                .collect();
        }
        Request::End(number) => {
            let mut end = format!("{}\n", name_of_end(*number)).into_bytes();
            end.push(*number);
            let key = names.name(partition, ENDS);
            let words = [&b"HSET"[..], key.as_bytes(), channel.as_bytes(), &end];
            return vec![words.map(<[u8]>::to_vec).into()];
        }
        Request::Release(from, token) => {
            let token = token.as_deref().unwrap_or_default();
            let call = call(Function::Release).arg(from).arg(token);
            return vec![words(&call.arg("0").arg("0"))];
        }
        Request::Effect(from, effect) => (from, effect),
    };
    let words = match effect {
        (
            from,
            Effect::Acquire {
                token,
                in_sync,
                preemption,
            },
        ) => {
            let in_sync = if *in_sync { "1" } else { "0" };
            let preemption = preemption.map_or_else(String::new, |number| number.to_string());
            let call = call(Function::Acquire).arg(from).arg(token).arg(TTL);
            words(&call.arg(in_sync).arg(&preemption))
        }
        (from, Effect::Renew { token }) => {
            words(&call(Function::Renew).arg(from).arg(token).arg(TTL))
        }
        (from, Effect::PublishBarrier { notice }) => {
            words(&call(Function::Listen).arg(from).arg(notice).arg(TTL))
        }
        (from, Effect::StepDown { notice }) => {
            words(&call(Function::StepDown).arg(from).arg(notice))
        }
        (
            from,
            Effect::Append {
                token,
                number,
                batch,
            },
        ) => {
            let number = number.to_string();
            let call = call(Function::Record).of_channels([channel]);
            let call = call.arg(from).arg("0-0").arg(token).arg(&number);
            // The channel of the simulation is in another partition.
            let names: Vec<_> = batch
                .iter()
                .map(|pending| match pending.channel() {
                    Some(own) => pending.name().replace(own.as_str(), channel),
                    None => String::new(),
                })
                .collect();
            let messages = batch.iter().zip(&names);
            words(&messages.fold(call, |call, (pending, name)| {
                call.arg(name).arg(&pending.payload).arg(&pending.digest)
            }))
        }
    };
    vec![words]
}

/// The meaning of an answer, and whether recording was interrupted.
fn reply(effect: &Effect, answer: &Answer) -> (Reply, bool) {
    let granted = |granted| {
        if granted {
            Outcome::Done
        } else {
            Outcome::Denied
        }
    };
    match (effect, answer) {
        (Effect::Acquire { .. }, Answer::Integer(3)) => (Reply::Late, false),
        (Effect::Acquire { .. }, answer) => {
            let answer = answer.integer();
            (Reply::Acquire(granted(answer > 0)), answer == 2)
        }
        (Effect::Renew { .. }, answer) => (Reply::Renew(granted(answer.integer() > 0)), false),
        (Effect::PublishBarrier { .. }, answer) => {
            (Reply::PublishBarrier(granted(answer.integer() > 0)), false)
        }
        (Effect::StepDown { .. }, answer) => {
            (Reply::StepDown(granted(answer.integer() > 0)), false)
        }
        (Effect::Append { .. }, Answer::Error(error)) if error.starts_with("FENCED") => {
            (Reply::Append(Outcome::Denied), false)
        }
        (Effect::Append { .. }, answer) => {
            let ids = answer.array().iter().map(Answer::text);
            let is_stored = ids.into_iter().all(|id| !id.starts_with('!'));
            (Reply::Append(granted(is_stored)), false)
        }
    }
}

async fn notices(listener: &mut Listener) -> Vec<String> {
    let (mut pushes, mut notices) = (Vec::new(), Vec::new());
    loop {
        listener.read(&mut pushes).await.unwrap();
        for push in pushes.drain(..) {
            if let Push::Message { payload, .. } = push {
                let notice = String::from_utf8(payload.to_vec()).unwrap();
                if notice == LAST {
                    return notices;
                }
                notices.push(notice);
            }
        }
    }
}

/// Breaks when the simulation takes the library to do something else than it does: in an answer, a notice, or what is
/// recorded.
#[tokio::test]
async fn the_library_does_what_the_simulation_takes_it_to_do() {
    let traces = traces();
    let mut server = Server::with_partitions(u16::try_from(traces.len()).unwrap()).await;
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: None,
    };
    let url = server.redis.url();
    let address = Address::new(&url, certificates, [], []).unwrap();
    let info = url.parse().unwrap();
    let mut listener = Listener::connect(&address, &info, 1 << 20).await.unwrap();
    // A replica that steps down is not the last one.
    listener.subscribe_public(REVOKE).await.unwrap();
    let names = server.names.clone();
    let run = server.run_id().await;
    for (partition, (name, world)) in traces.iter().enumerate() {
        let partition = u16::try_from(partition).unwrap();
        let channels = (0..).map(|number| format!("c{number}"));
        let mut channels = channels.filter(|it| names.partitions().of(it) == partition);
        let channel = channels.next().unwrap();
        let recorded = names.recorded(partition, &run);
        listener.subscribe([&*recorded]).await.unwrap();
        let steps = world.trace.as_ref().unwrap();
        let mut replicas: Vec<&str> = Vec::new();
        for (request, _) in steps {
            if let Request::Effect(from, _) = request
                && !replicas.contains(&&**from)
            {
                replicas.push(from);
                server.handshake(from, partition).await;
            }
        }
        let requests: Vec<_> = steps
            .iter()
            .map(|(it, _)| request(&names, partition, &channel, it))
            .collect();
        let commands: Vec<Vec<&[u8]>> = requests
            .iter()
            .flatten()
            .map(|words| words.iter().map(Vec::as_slice).collect())
            .collect();
        let mut answers = server
            .commands
            .call_all(&commands)
            .await
            .unwrap()
            .into_iter();
        for (number, ((it, executed), words)) in steps.iter().zip(&requests).enumerate() {
            let answers: Vec<_> = answers.by_ref().take(words.len()).collect();
            if let Request::Effect(_, effect) = it {
                let Executed {
                    reply: expected,
                    is_interrupted,
                    ..
                } = executed;
                let found = reply(effect, &answers[0]);
                assert_eq!(
                    found,
                    (*expected, *is_interrupted),
                    "{name}, step {number}: {it:?} was answered {answers:?}"
                );
            }
        }
        server
            .commands
            .run(&format!("SPUBLISH {recorded} {LAST}"))
            .await;
        let expected = steps.iter().flat_map(|(_, executed)| &executed.notices);
        let expected: Vec<_> = expected.cloned().collect();
        assert_eq!(notices(&mut listener).await, expected, "{name}");
        let log: Vec<_> = server.log(&channel).await.concat().into_bytes();
        assert_eq!(log, world.redis.log, "{name}");
    }
}
