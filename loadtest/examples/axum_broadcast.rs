//! An event stream as most Rust services write it: axum's `Sse` over a tokio broadcast channel.
//!
//! `axum_broadcast LISTEN REDIS`

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Query, State},
    response::sse::{Event, KeepAlive, Sse},
    routing::get,
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    sync::{Mutex, broadcast},
};

/// How many messages a slow client may be behind.
const CAPACITY: usize = 16 * 1024;

#[derive(Clone)]
struct App {
    channels: Arc<Mutex<HashMap<String, broadcast::Sender<String>>>>,
    subscriptions: Arc<Mutex<redis::aio::PubSubSink>>,
}

#[derive(Deserialize)]
struct Asked {
    channel: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().context("no address to listen on")?;
    let redis = arguments.next().context("no address of Redis")?;
    let client = redis::Client::open(format!("redis://{redis}"))?;
    let (sink, mut messages) = client.get_async_pubsub().await?.split();
    let app = App {
        channels: Arc::default(),
        subscriptions: Arc::new(Mutex::new(sink)),
    };
    let channels = Arc::clone(&app.channels);
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            let (name, payload) = (message.get_channel_name(), message.get_payload());
            if let (Some(channel), Ok(payload)) = (channels.lock().await.get(name), payload) {
                // All clients may have left.
                let _receivers = channel.send(payload);
            }
        }
    });
    let router = Router::new().route("/events", get(events)).with_state(app);
    axum::serve(TcpListener::bind(listen).await?, router).await?;
    Ok(())
}

async fn events(
    State(app): State<App>,
    Query(asked): Query<Asked>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let name = format!("sse:{}", asked.channel);
    let mut channels = app.channels.lock().await;
    let receiver = match channels.get(&name) {
        Some(channel) => channel.subscribe(),
        None => {
            let (sender, receiver) = broadcast::channel(CAPACITY);
            let mut subscriptions = app.subscriptions.lock().await;
            subscriptions
                .subscribe(&name)
                .await
                .expect("Redis is there");
            channels.insert(name, sender);
            receiver
        }
    };
    let events = stream::unfold(receiver, |mut receiver| async {
        loop {
            match receiver.recv().await {
                Ok(payload) => return Some((Ok(Event::default().data(payload)), receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}
