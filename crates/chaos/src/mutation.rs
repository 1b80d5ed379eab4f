//! A proxy between clients and a replica that changes one event, to show that the checker notices.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use testkit::{Head, Message};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::channels::{NUMBERED, SAME};

/// How one event is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mutation {
    /// It does not arrive.
    Drop,
    /// It arrives twice.
    Repeat,
    /// It arrives without its id.
    StripId,
    /// It arrives after the next one.
    Reorder,
    /// It has another id.
    Renumber,
    /// An event of a channel that was not requested arrives as well.
    Leak,
    /// One of the identical messages does not arrive.
    DropAlike,
    /// A gap arrives where no message is missing.
    FalseGap,
}

impl Mutation {
    /// Listens, and forwards to this replica. When `armed`, it changes the next event and no other.
    pub(crate) async fn before(self, replica: SocketAddr, armed: &Arc<AtomicBool>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let armed = Arc::clone(armed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let armed = Arc::clone(&armed);
                tokio::spawn(async move {
                    // A client that leaves is not an error.
                    self.pass(client, replica, &armed).await.ok();
                });
            }
        });
        address
    }

    async fn pass(
        self,
        mut client: TcpStream,
        replica: SocketAddr,
        armed: &AtomicBool,
    ) -> Result<()> {
        let mut server = TcpStream::connect(replica).await?;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            ensure!(client.read_buf(&mut request).await? > 0, "no request");
        }
        server.write_all(&request).await?;
        let mut bytes = Vec::new();
        let (head, length) = loop {
            if let Some(parsed) = Head::parse(&bytes)? {
                break parsed;
            }
            ensure!(server.read_buf(&mut bytes).await? > 0, "no answer");
        };
        let content_type = head.field("content-type").context("no content type")?;
        let answer = format!(
            "HTTP/1.1 {} OK\r\nContent-Type: {content_type}\r\n\r\n",
            head.status
        );
        client.write_all(answer.as_bytes()).await?;
        bytes.drain(..length);
        let mut framing = head.framing()?;
        let mut body = Vec::new();
        let mut held = Vec::new();
        loop {
            framing.decode(&bytes, |decoded| body.extend_from_slice(decoded))?;
            bytes.clear();
            // A block of lines ends with an empty line.
            while let Some(end) = body.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = body.drain(..end + 2).collect();
                let block = String::from_utf8(block)?;
                let waiting = std::mem::take(&mut held);
                let out = self.mutate(&block, armed, &mut held);
                client.write_all(out.as_bytes()).await?;
                client.write_all(&waiting).await?;
            }
            let mut said = [0];
            tokio::select! {
                // A client that has left must not receive the changed event.
                biased;
                _ = client.read(&mut said) => return Ok(()),
                read = server.read_buf(&mut bytes) => ensure!(read? > 0, "the end"),
            }
        }
    }

    /// The text that replaces this block. `held` is sent after the next block.
    fn mutate(self, block: &str, armed: &AtomicBool, held: &mut Vec<u8>) -> String {
        let wanted = match self {
            Self::DropAlike => format!("data: {SAME}\n"),
            _ => format!("data: {} ", NUMBERED[1]),
        };
        if !block.contains(&wanted) || !armed.swap(false, Ordering::AcqRel) {
            return block.to_owned();
        }
        match self {
            Self::Drop | Self::DropAlike => String::new(),
            Self::Repeat => block.repeat(2),
            Self::StripId => {
                let lines = block.split_inclusive('\n');
                lines.filter(|line| !line.starts_with("id:")).collect()
            }
            Self::Reorder => {
                held.extend_from_slice(block.as_bytes());
                String::new()
            }
            // No later event of the same millisecond has this id. The id is the last field.
            Self::Renumber => format!("{}77\n\n", block.trim_end()),
            Self::Leak => format!("{block}data: {} elsewhere 0 0\n\n", NUMBERED[1]),
            Self::FalseGap => {
                // Uses the event's own channel, because the client may not follow another one.
                let data = block.lines().find_map(|line| line.strip_prefix("data: "));
                let channel = data.and_then(Message::parse).map_or("", |m| m.channel);
                let id = block.lines().find_map(|line| line.strip_prefix("id:"));
                let after = id.unwrap_or_default().trim();
                format!(
                    "{block}event: gateway.gap\ndata: {{\"channel\": \"{channel}\", \"after\": \"{after}\", \
                     \"reason\": \"trimmed\"}}\n\n"
                )
            }
        }
    }
}
