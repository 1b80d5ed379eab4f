//! A proxy between a gateway and its clients that collects data before it passes them on.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    select,
    time::interval,
};

/// Passes a stream's first event on at once, and later data only from time to time.
#[derive(Debug)]
pub(crate) struct BufferingProxy {
    pub(crate) public: SocketAddr,
}

impl BufferingProxy {
    /// Starts a proxy that passes on the collected data once in each period.
    pub(crate) async fn before(gateway: SocketAddr, every: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let public = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, gateway, every));
            }
        });
        Self { public }
    }
}

async fn connection(mut client: TcpStream, gateway: SocketAddr, every: Duration) -> io::Result<()> {
    let mut gateway = TcpStream::connect(gateway).await?;
    let (mut questions, mut to_client) = client.split();
    let (mut answers, mut to_gateway) = gateway.split();
    let mut held = Vec::new();
    let forth = copy(&mut questions, &mut to_gateway);
    let back = async {
        // The blank line after the first event. HTTP's own blank lines are different.
        while !held.windows(2).any(|two| two == b"\n\n") {
            if answers.read_buf(&mut held).await? == 0 {
                break;
            }
        }
        let mut due = interval(every);
        loop {
            select! {
                read = answers.read_buf(&mut held) => if read? == 0 {
                    return to_client.write_all(&held).await;
                },
                // The first time at once.
                _ = due.tick() => to_client.write_all(&std::mem::take(&mut held)).await?,
            }
        }
    };
    select! {
        gone = forth => gone.map(drop),
        ended = back => ended,
    }
}
