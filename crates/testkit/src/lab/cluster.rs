//! A real Redis Cluster, whose slots can be moved and whose nodes can be failed over, killed and added.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use super::{
    Commands, FaultyLink, PATIENCE, Process, Redis, Reply, eventually, free_port, redis_server,
};
use crate::{hash_tag, partition_of};

/// Slots of a cluster.
const SLOTS: u32 = 16384;

/// Masters with equal ranges of slots, and copies of each.
#[derive(Debug)]
pub struct Cluster {
    /// All nodes. The first are the masters of the start.
    pub nodes: Vec<Redis>,
    /// Over these the other nodes connect to each node, if they are [linked](Self::start_linked).
    pub buses: Vec<FaultyLink>,
    is_linked: bool,
    program: String,
    options: Vec<String>,
}

impl Cluster {
    /// Starts this many masters, and as many copies of each. A node is regarded as down after `timeout` milliseconds
    /// without an answer.
    pub async fn start(masters: usize, copies: usize, timeout: u32) -> Self {
        Self::start_with(masters, copies, timeout, &[]).await
    }

    /// The same, with more options for each node.
    pub async fn start_with(masters: usize, copies: usize, timeout: u32, options: &[&str]) -> Self {
        Self::start_on(false, &redis_server(), masters, copies, timeout, options).await
    }

    /// The same. The other nodes connect to each node over a link that can be cut.
    pub async fn start_linked(
        masters: usize,
        copies: usize,
        timeout: u32,
        options: &[&str],
    ) -> Self {
        Self::start_on(true, &redis_server(), masters, copies, timeout, options).await
    }

    /// Starts a cluster of another program than [`redis_server`].
    pub async fn start_program(
        program: &str,
        masters: usize,
        copies: usize,
        timeout: u32,
        options: &[&str],
    ) -> Self {
        Self::start_on(false, program, masters, copies, timeout, options).await
    }

    async fn start_on(
        is_linked: bool,
        program: &str,
        masters: usize,
        copies: usize,
        timeout: u32,
        options: &[&str],
    ) -> Self {
        let timeout = timeout.to_string();
        let own = [
            "--cluster-node-timeout",
            &timeout,
            "--repl-diskless-sync-delay",
            "0",
        ];
        let options = own.iter().chain(options);
        let mut cluster = Self {
            nodes: Vec::new(),
            buses: Vec::new(),
            is_linked,
            program: program.to_owned(),
            options: options.map(|option| (*option).to_owned()).collect(),
        };
        for _ in 0..masters * (1 + copies) {
            let node = cluster.new_node().await;
            cluster.nodes.push(node);
        }
        cluster.form(masters).await;
        cluster
    }

    /// Makes the nodes, which do not know each other, a cluster of this many masters and copies of them.
    async fn form(&self, masters: usize) {
        let count = u32::try_from(masters).expect("few");
        for (number, node) in (0..count).zip(&self.nodes) {
            let (from, to) = (number * SLOTS / count, (number + 1) * SLOTS / count - 1);
            let mut commands = node.connect().await;
            commands
                .run(&format!("CLUSTER ADDSLOTSRANGE {from} {to}"))
                .await;
            commands
                .run(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1))
                .await;
        }
        for node in &self.nodes[1..] {
            self.meet(node).await;
        }
        self.is_known(self.nodes.len()).await;
        for (place, node) in self.nodes.iter().enumerate().skip(masters) {
            let master = id_of(&self.nodes[place % masters]).await;
            let mut commands = node.connect().await;
            commands.run(&format!("CLUSTER REPLICATE {master}")).await;
        }
        self.settle().await;
    }

    /// Makes a new cluster of the same masters, without data. The last one owns the first slots.
    pub async fn form_again(&mut self) {
        for node in &self.nodes {
            let mut commands = node.connect().await;
            // A node with keys cannot be reset.
            for command in ["MULTI", "FLUSHALL", "CLUSTER RESET HARD", "EXEC"] {
                commands.run(command).await;
            }
        }
        self.nodes.reverse();
        self.form(self.nodes.len()).await;
    }

    async fn new_node(&mut self) -> Redis {
        let bus = free_port(&[Ipv4Addr::LOCALHOST]);
        let (port, mut announced) = (bus.to_string(), bus.to_string());
        if self.is_linked {
            let link = FaultyLink::to((Ipv4Addr::LOCALHOST, bus).into()).await;
            announced = link.address.port().to_string();
            self.buses.push(link);
        }
        let tls = free_port(&[Ipv4Addr::LOCALHOST]).to_string();
        let mut options = vec!["--cluster-enabled", "yes", "--cluster-port", &port];
        options.extend(["--cluster-announce-bus-port", &announced]);
        options.extend(self.options.iter().map(String::as_str));
        if options.contains(&"--tls-cert-file") {
            options.extend(["--tls-port", &tls]);
        }
        Redis::start_program(&self.program, &options).await
    }

    /// Introduces a node to the first one.
    async fn meet(&self, node: &Redis) {
        let first = &self.nodes[0];
        let bus = first.option("--cluster-port");
        let (ip, port) = (first.address().ip(), first.address().port());
        let mut commands = node.connect().await;
        commands
            .run(&format!("CLUSTER MEET {ip} {port} {bus}"))
            .await;
    }

    /// Adds a master without slots.
    pub async fn add_master(&mut self) {
        let node = self.new_node().await;
        self.meet(&node).await;
        self.nodes.push(node);
        self.is_known(self.nodes.len()).await;
        self.settle().await;
    }

    /// Restarts two nodes with their data, each at the address of the other one, and waits until all nodes know.
    pub async fn swap_addresses(&mut self, one: usize, other: usize) {
        let mut ids = Vec::new();
        for node in &self.nodes {
            ids.push(id_of(node).await);
        }
        let pair = self.nodes.get_disjoint_mut([one, other]);
        let [one, other] = pair.expect("two nodes");
        one.stop().await;
        other.stop().await;
        one.swap_addresses(other);
        one.restart().await;
        other.restart().await;
        eventually("the nodes know the addresses", PATIENCE, async || {
            for asked in &self.nodes {
                let nodes = nodes_at(asked.address()).await?;
                for (id, node) in ids.iter().zip(&self.nodes) {
                    let place = format!("{id} {}@", node.address());
                    if !nodes.contains(&place) {
                        return Err(nodes);
                    }
                }
            }
            Ok(())
        })
        .await;
        self.settle().await;
    }

    /// Waits until all nodes know each other.
    async fn is_known(&self, count: usize) {
        eventually("the nodes know each other", PATIENCE, async || {
            for node in &self.nodes {
                let nodes = nodes_at(node.address()).await?;
                let known = nodes
                    .lines()
                    .filter(|line| line.contains(" connected"))
                    .count();
                if known < count || nodes.contains("handshake") {
                    return Err(format!("{known} of {count}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until the cluster accepts calls at every node that runs, and all copies are connected to their masters.
    pub async fn settle(&self) {
        eventually("the cluster is well", 2 * PATIENCE, async || {
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                let mut commands = Commands::connect(node.address())
                    .await
                    .map_err(|error| error.to_string())?;
                let info = commands.run("CLUSTER INFO").await.text();
                let link = commands.run("INFO replication").await.text();
                let is_copied = !link.contains("master_link_status:down");
                if !info.contains("cluster_state:ok") || !is_copied {
                    return Err(format!("{}: {info} {link}", node.address()));
                }
            }
            Ok(())
        })
        .await;
    }

    /// The seeds, as in `--redis-cluster`.
    pub fn seeds(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.address().to_string())
            .collect();
        nodes.join(",")
    }

    /// The slot of a partition.
    pub async fn slot(&self, partition: u32, partitions: u32) -> u32 {
        let tag = hash_tag(partition, partitions);
        let mut commands = self.nodes[0].connect().await;
        let slot = commands.run(&format!("CLUSTER KEYSLOT {{{tag}}}")).await;
        u32::try_from(slot.integer()).expect("a slot")
    }

    /// The node that owns a slot, according to most nodes that run.
    pub async fn owner(&self, slot: u32) -> usize {
        eventually("a slot has an owner", 2 * PATIENCE, async || {
            let mut owners = Vec::new();
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                if let Ok(nodes) = nodes_at(node.address()).await {
                    owners.extend(self.owner_in(&nodes, slot));
                }
            }
            let most = owners
                .iter()
                .max_by_key(|it| owners.iter().filter(|other| other == it).count());
            let most = most.copied().filter(|it| self.nodes[*it].is_running());
            most.ok_or_else(|| format!("{owners:?}"))
        })
        .await
    }

    fn owner_in(&self, nodes: &str, slot: u32) -> Option<usize> {
        let owns = |line: &&str| {
            let ranges = line
                .split(' ')
                .skip(8)
                .filter(|range| !range.starts_with('['));
            line.contains("master")
                && ranges.into_iter().any(|range| {
                    let (from, to) = range.split_once('-').unwrap_or((range, range));
                    let number = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
                    (number(from)..=number(to)).contains(&slot)
                })
        };
        let line = nodes.lines().find(owns)?;
        let address = line.split(' ').nth(1)?.split('@').next()?;
        self.nodes
            .iter()
            .position(|node| node.address().to_string() == address)
    }

    /// The node that holds a channel.
    pub async fn holder(&self, channel: &str, partitions: u32) -> usize {
        let slot = self
            .slot(partition_of(channel, partitions), partitions)
            .await;
        self.owner(slot).await
    }

    /// Publishes through the function, at the node that holds the channel.
    pub async fn append(&self, channel: &str, payload: &str, partitions: u32) -> String {
        let what = format!("sse_publish to {channel}");
        let tag = hash_tag(partition_of(channel, partitions), partitions);
        let key = |rest: &str| format!("ssegw:{{{tag}}}:{rest}");
        let keys = ["clock", "past", "ends"].map(key);
        let [log, ids] = ["log:", "ids:"].map(|kind| key(kind) + channel);
        eventually(&what, 2 * PATIENCE, async || {
            let holder = self.holder(channel, partitions).await;
            let mut commands = Commands::connect(self.nodes[holder].address())
                .await
                .map_err(|error| error.to_string())?;
            let mut words = vec!["FCALL", "sse_publish", "5"];
            words.extend(keys.iter().map(String::as_str));
            words.extend([&*log, &*ids, channel, payload]);
            let words: Vec<_> = words.into_iter().map(str::as_bytes).collect();
            match commands
                .call(&words)
                .await
                .map_err(|error| error.to_string())?
            {
                Reply::Error(error) => Err(error),
                reply => Ok(reply.text()),
            }
        })
        .await
    }

    /// Moves a slot to another master key by key, as `redis-cli --cluster reshard` does.
    pub async fn move_slot(&self, slot: u32, to: usize) {
        Box::pin(self.move_slot_while(slot, to, async {})).await;
    }

    /// The same, with a pause after the first keys.
    pub async fn move_slot_while(&self, slot: u32, to: usize, pause: impl Future<Output = ()>) {
        let from = self.owner(slot).await;
        if from == to {
            return;
        }
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let (from_id, to_id) = (id_of(source).await, id_of(target).await);
        let (mut at_source, mut at_target) = (source.connect().await, target.connect().await);
        at_target
            .run(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"))
            .await;
        at_source
            .run(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"))
            .await;
        let mut pause = Some(pause);
        loop {
            let keys = at_source
                .run(&format!("CLUSTER GETKEYSINSLOT {slot} 10"))
                .await;
            let keys: Vec<_> = keys.array().iter().map(Reply::text).collect();
            if keys.is_empty() {
                break;
            }
            let (ip, port) = (target.address().ip(), target.address().port());
            let port = port.to_string();
            let ip = ip.to_string();
            let mut words = vec!["MIGRATE", &ip, &port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            let words: Vec<_> = words.into_iter().map(str::as_bytes).collect();
            let moved = at_source.call(&words).await.expect("it answers");
            assert!(matches!(moved, Reply::Text(_)), "{moved:?}");
            if let Some(pause) = pause.take() {
                pause.await;
            }
        }
        at_target
            .run(&format!("CLUSTER SETSLOT {slot} NODE {to_id}"))
            .await;
        at_source
            .run(&format!("CLUSTER SETSLOT {slot} NODE {to_id}"))
            .await;
    }

    /// Moves a slot to another master with one command, if the servers have it: `CLUSTER MIGRATION` of Redis 8.4, or
    /// `CLUSTER MIGRATESLOTS` of Valkey 9. Returns whether they have, after the slot has moved.
    pub async fn move_slot_at_once(&self, slot: u32, to: usize) -> bool {
        let from = self.owner(slot).await;
        if from == to {
            return true;
        }
        let id = id_of(&self.nodes[to]).await;
        let import = format!("CLUSTER MIGRATION IMPORT {slot} {slot}");
        let export = format!("CLUSTER MIGRATESLOTS SLOTSRANGE {slot} {slot} NODE {id}");
        let mut is_ordered = false;
        for (node, command) in [(to, import), (from, export)] {
            let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
            let mut commands = self.nodes[node].connect().await;
            match commands.call(&words).await.expect("it answers") {
                Reply::Error(error) if error.contains("unknown subcommand") => {}
                Reply::Error(error) => panic!("{command}: {error}"),
                _ => is_ordered = true,
            }
        }
        if is_ordered {
            eventually("the slot has moved", PATIENCE, async || {
                for node in &self.nodes {
                    let nodes = nodes_at(node.address()).await?;
                    if self.owner_in(&nodes, slot) != Some(to) {
                        return Err(nodes);
                    }
                }
                Ok(())
            })
            .await;
        }
        is_ordered
    }

    /// Runs `redis-cli --cluster COMMAND` with the first node. `REDIS_CLI` names another program. After
    /// `--cluster-from` and `--cluster-to` the arguments are numbers of nodes.
    pub async fn redis_cli(&self, command: &str, arguments: &[&str]) {
        let program = env::var("REDIS_CLI").unwrap_or_else(|_| "redis-cli".to_owned());
        let mut cli = Command::new(program);
        cli.args(["--cluster", command, &self.nodes[0].address().to_string()]);
        let mut is_node = false;
        for argument in arguments {
            match is_node {
                true => {
                    let node: usize = argument.parse().expect("the number of a node");
                    cli.arg(id_of(&self.nodes[node]).await);
                }
                false => _ = cli.arg(argument),
            }
            is_node = ["--cluster-from", "--cluster-to"].contains(argument);
        }
        let mut cli = Process::start("redis-cli", &mut cli);
        let status = cli.exit_within(3 * PATIENCE).await;
        assert!(status.success(), "{}", cli.output());
    }

    /// Orders a copy of this master to take its place, and waits until it has.
    pub async fn fail_over(&self, master: usize) -> usize {
        let slots = self.any_slot(master).await;
        let copy = self.copy_of(master).await;
        let mut commands = self.nodes[copy].connect().await;
        commands.run("CLUSTER FAILOVER").await;
        self.replaced(slots, master).await
    }

    /// Waits until another node owns a slot.
    pub async fn replaced(&self, slot: u32, master: usize) -> usize {
        eventually(
            "another node owns the slot",
            2 * PATIENCE,
            async || match self.owner(slot).await {
                owner if owner != master => Ok(owner),
                owner => Err(format!("node {owner}")),
            },
        )
        .await
    }

    async fn any_slot(&self, master: usize) -> u32 {
        let nodes = nodes_at(self.nodes[master].address()).await;
        let nodes = nodes.expect("the master answers");
        let line = nodes.lines().find(|line| line.contains("myself"));
        let range = line.and_then(|line| line.split(' ').nth(8));
        let slot = range.and_then(|range| range.split('-').next()?.parse().ok());
        slot.unwrap_or_else(|| panic!("node {master} owns no slot: {nodes}"))
    }

    /// A copy of this master. The master learns of its copies one after the other.
    pub async fn copy_of(&self, master: usize) -> usize {
        let id = id_of(&self.nodes[master]).await;
        eventually("the master knows a copy", PATIENCE, async || {
            let nodes = nodes_at(self.nodes[master].address()).await?;
            let copies = nodes
                .lines()
                .filter(|line| line.contains(&format!("slave {id}")));
            let addresses: Vec<_> = copies
                .filter_map(|line| line.split(' ').nth(1)?.split('@').next())
                .collect();
            let is_copy = |node: &Redis| addresses.contains(&&*node.address().to_string());
            let copy = self.nodes.iter().position(is_copy);
            copy.ok_or_else(|| nodes.clone())
        })
        .await
    }
}

async fn id_of(node: &Redis) -> String {
    node.connect().await.run("CLUSTER MYID").await.text()
}

async fn nodes_at(node: SocketAddr) -> Result<String, String> {
    let asked = async {
        let mut commands = Commands::connect(node).await?;
        commands.call(&[b"CLUSTER", b"NODES"]).await
    };
    let asked = tokio::time::timeout(PATIENCE / 20, asked).await;
    let asked = asked.map_err(|_| "no answer".to_owned())?;
    asked
        .map(|nodes| nodes.text())
        .map_err(|error| error.to_string())
}
