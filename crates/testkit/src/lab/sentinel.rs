//! Real sentinels that watch a master with copies.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use super::{Commands, Dir, PATIENCE, Process, Redis, Reply, eventually, free_port, redis_server};

/// The name of the master in the sentinels' configuration.
pub const MASTER: &str = "events";
/// Longest wait for a sentinel's answer.
const ANSWER: Duration = Duration::from_millis(500);

/// A sentinel with its own port. It ends when this is dropped.
#[derive(Debug)]
pub struct Sentinel {
    /// The address it listens on.
    pub address: SocketAddr,
    /// Its process.
    pub process: Process,
    _dir: Dir,
}

impl Sentinel {
    /// Starts a sentinel that watches [`MASTER`] at this address. `quorum` sentinels have to agree that it is down.
    /// `lines` are added to the configuration.
    pub async fn start(master: SocketAddr, quorum: u32, lines: &str) -> Self {
        let monitor = format!("{} {}", master.ip(), master.port());
        Self::on("port", &monitor, quorum, lines).await
    }

    /// The same over TLS, for a master that is known by its host name.
    pub async fn start_with_tls(port: u16, quorum: u32, lines: &str) -> Self {
        let names =
            "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\ntls-replication yes";
        let lines = format!("port 0\n{lines}");
        let monitor = format!("localhost {port}");
        Self::on(&format!("{names}\ntls-port"), &monitor, quorum, &lines).await
    }

    /// Starts three sentinels, of which two have to agree.
    pub async fn three(master: &Redis, lines: &str) -> [Self; 3] {
        let [a, b, c] = [(); 3].map(|()| Self::start(master.address(), 2, lines));
        tokio::join!(a, b, c).into()
    }

    async fn on(port_is: &str, monitor: &str, quorum: u32, lines: &str) -> Self {
        let port = free_port(&[Ipv4Addr::LOCALHOST]);
        let dir = Dir::new();
        let config = format!(
            "{port_is} {port}\nbind 127.0.0.1\ndir {}\n\
             sentinel monitor {MASTER} {monitor} {quorum}\n{lines}\n",
            dir.path().display()
        );
        // The sentinel stores its state in this file.
        let config = dir.write("sentinel.conf", &config);
        let mut command = Command::new(redis_server());
        command.args([&config, "--sentinel"]);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let process = Process::start("sentinel", &mut command);
        eventually("a sentinel listens", PATIENCE, async || {
            let connected = TcpStream::connect(address).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Self {
            address,
            process,
            _dir: dir,
        }
    }

    /// The address of the master according to this sentinel, if it answers in time.
    pub async fn master_at(sentinel: SocketAddr) -> Option<SocketAddr> {
        let asked = async {
            let mut commands = Commands::connect(sentinel).await.ok()?;
            let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER].map(str::as_bytes);
            let reply = commands.call(&words).await.ok()?;
            let Reply::Array(parts) = reply else {
                return None;
            };
            format!("{}:{}", parts[0].text(), parts[1].text())
                .parse()
                .ok()
        };
        timeout(ANSWER, asked).await.ok()?
    }

    /// Orders the sentinel to replace the master.
    pub async fn fail_over(&self) {
        let mut commands = Commands::connect(self.address).await.expect("it listens");
        let answer = commands.run(&format!("SENTINEL FAILOVER {MASTER}")).await;
        assert_eq!(answer.text(), "OK");
    }
}

/// Three sentinels that agree within seconds, and the copies of their master.
#[derive(Debug)]
pub struct Sentinels {
    /// The sentinels, of which two have to agree.
    pub all: [Sentinel; 3],
    /// The servers that may become the master.
    pub copies: Vec<Redis>,
}

impl Sentinels {
    /// Starts a master with these options, this many copies, and the sentinels. They regard a server as down after
    /// `down_after` milliseconds without an answer.
    pub async fn start(options: &[&str], copies: usize, down_after: u32) -> (Redis, Self) {
        let options = [options, &["--repl-diskless-sync-delay", "0"]].concat();
        let mut master = Redis::start_with(&options).await;
        let port = master.address().port().to_string();
        let copy_options = [&options[..], &["--replicaof", "127.0.0.1", &port]].concat();
        let mut started = Vec::new();
        for _ in 0..copies {
            started.push(Redis::start_with(&copy_options).await);
        }
        let lines = format!(
            "sentinel down-after-milliseconds {MASTER} {down_after}\n\
             sentinel failover-timeout {MASTER} 2000"
        );
        let all = Sentinel::three(&master, &lines).await;
        for sentinel in &all {
            let mut commands = Commands::connect(sentinel.address)
                .await
                .expect("it listens");
            // By default, a sentinel that was stopped pauses for 30 s and checks copies every 10 s.
            commands
                .run("SENTINEL DEBUG tilt-period 1000 info-period 1000")
                .await;
        }
        let mut sentinels = Self {
            all,
            copies: started,
        };
        sentinels.settle(&mut master).await;
        (master, sentinels)
    }

    /// The addresses they listen on.
    pub fn addresses(&self) -> [SocketAddr; 3] {
        self.all.each_ref().map(|sentinel| sentinel.address)
    }

    /// Waits until every sentinel can replace the master and all other servers are complete copies of it. If the
    /// sentinels have promoted another server, `master` becomes that server.
    pub async fn settle(&mut self, master: &mut Redis) {
        let at = eventually("the sentinels can act", 3 * PATIENCE, async || {
            let mut known = Vec::new();
            for sentinel in &self.all {
                known.push(self.can_act(sentinel).await?);
            }
            match known[..] {
                [first, second, third] if first == second && second == third => Ok(first),
                _ => Err(format!("the master is at {known:?}")),
            }
        })
        .await;
        if let Some(copy) = self.copies.iter_mut().find(|copy| copy.address() == at) {
            std::mem::swap(copy, master);
        }
        copied(master, self.copies.len()).await;
    }

    /// Waits until at least two sentinels report another master.
    pub async fn replaced(&self, master: &Redis) {
        eventually("the master is replaced", PATIENCE, async || {
            let mut others = Vec::new();
            for sentinel in &self.all {
                let at = Sentinel::master_at(sentinel.address).await;
                others.extend(at.filter(|at| *at != master.address()));
            }
            match others[..] {
                [_, _, ..] => Ok(()),
                _ => Err(format!("sentinels know {others:?}")),
            }
        })
        .await;
    }

    /// The master's address according to a sentinel, if it also knows the other sentinels and all copies.
    async fn can_act(&self, sentinel: &Sentinel) -> Result<SocketAddr, String> {
        let asked = async {
            let mut commands = Commands::connect(sentinel.address).await?;
            let [quorum, copies] = ["CKQUORUM", "REPLICAS"]
                .map(|word| [b"SENTINEL", word.as_bytes(), MASTER.as_bytes()]);
            let quorum = format!("{:?}", commands.call(&quorum).await?);
            let copies = commands.call(&copies).await?;
            let info = commands.call(&[b"INFO", b"sentinel"]).await?.text();
            std::io::Result::Ok((quorum, copies, info))
        };
        let asked = timeout(PATIENCE, asked).await.map_err(|_| "no answer")?;
        let (quorum, copies, info) = asked.map_err(|error| error.to_string())?;
        let copies: Vec<_> = copies.array().iter().map(state_of).collect();
        let complete = ("slave".to_owned(), "ok".to_owned());
        if copies.len() < self.copies.len()
            || copies.iter().any(|copy| *copy != complete)
            || !quorum.contains("OK 3 usable")
            || !info.contains("sentinel_tilt:0")
        {
            return Err(format!("{quorum} {copies:?} {info}"));
        }
        let at = Sentinel::master_at(sentinel.address).await;
        at.ok_or_else(|| "it knows no master".to_owned())
    }
}

/// The flags of a copy, and the state of its link to the master, in a sentinel's list.
fn state_of(copy: &Reply) -> (String, String) {
    let field = |name: &str| {
        let mut fields = copy.array().chunks_exact(2);
        let found = fields.find(|field| field[0].text() == name);
        found.map_or_else(String::new, |field| field[1].text())
    };
    (field("flags"), field("master-link-status"))
}

/// Waits until this many copies have all data of their master.
pub async fn copied(master: &Redis, copies: usize) {
    let wait = format!("WAIT {copies} 1000");
    // A sentinel may turn the old master into a copy only after a while.
    eventually("the copies are complete", 2 * PATIENCE, async || {
        let mut commands = master.connect().await;
        // WAIT covers the writes of this connection, and all earlier writes.
        commands.run("SET copied 1").await;
        match commands.run(&wait).await.integer() {
            there if there >= copies as i64 => Ok(()),
            there => Err(format!("{there} copies")),
        }
    })
    .await;
}

/// Waits until sentinels have made it the master. At that moment they close all of its connections.
pub async fn promoted(redis: &Redis) {
    eventually("it is promoted", PATIENCE, async || {
        let role = async {
            let mut commands = Commands::connect(redis.address()).await?;
            commands.call(&[b"ROLE"]).await
        };
        let role = role.await.map_err(|error| error.to_string())?;
        match role.array()[0].text() {
            role if role == "master" => Ok(()),
            role => Err(role),
        }
    })
    .await;
}
