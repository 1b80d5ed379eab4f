//! The recipes of `docs/recipes.md` work: the tests run their programs.

use std::{collections::BTreeMap, fs, future::IntoFuture, net::SocketAddr, process::Command};

use axum::{
    Router,
    http::header,
    response::{Html, IntoResponse},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::OnceCell};

use crate::{
    SHARES,
    driver::Driver,
    support::{
        Balancer, Dir, Gateway, Kind, Place, Process, Redis, Share, becomes, recording, shares,
    },
};

const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/recipes.md");
const ACCESS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/access.md");
/// The Redis clients that the programs import.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recipes");

/// The programs, by name.
fn programs() -> BTreeMap<String, String> {
    let text = fs::read_to_string(RECIPES).expect("there are recipes");
    let mut programs = BTreeMap::new();
    let mut blocks = text.split("\n```");
    blocks.next();
    // The text between two blocks begins with a line end.
    for block in blocks.filter(|block| !block.starts_with('\n')) {
        let (first, program) = block.split_once('\n').expect("a line");
        if let Some((_, name)) = first.split_once(' ') {
            programs.insert(name.to_owned(), program.to_owned());
        }
    }
    programs
}

/// A gateway behind a balancer that has a page at `/`, and a Redis.
struct Shop {
    programs: BTreeMap<String, String>,
    balancer: Balancer,
    gateway: Gateway,
    redis: Redis,
    dir: Dir,
    _machine: Share,
}

impl Shop {
    /// The page contains the recipe and the functions that the recipe leaves out. `shown` contains the displayed
    /// values.
    async fn open(recipe: &str, more: impl FnOnce(&Redis, Router) -> Router) -> Self {
        let programs = programs();
        Self::with(&programs[recipe], more, "").await
    }

    /// Like `open`, with any program and a configuration.
    async fn with(
        program: &str,
        more: impl FnOnce(&Redis, Router) -> Router,
        config: &str,
    ) -> Self {
        let machine = shares(SHARES).await;
        let programs = programs();
        let page = format!(
            "<!doctype html><title>A page</title><link rel=icon href='data:,'>\
             <script>const shown = []; const show = what => shown.push(structuredClone(what))</script>\
             <script type=module>{program}\nglobalThis.source = typeof source === 'undefined' ? null : source</script>"
        );
        let frames = "<!doctype html><title>Tabs</title>".to_owned()
            + &"<iframe src='/'></iframe>".repeat(3);
        let worker = programs["events-worker.js"].clone();
        let worker =
            async move || ([(header::CONTENT_TYPE, "text/javascript")], worker).into_response();
        let redis = Redis::start().await;
        let site = Router::new()
            .route("/", get(Html(page)))
            .route("/tabs", get(Html(frames)))
            .route("/events-worker.js", get(worker));
        let site = serve(more(&redis, site)).await;
        let gateway = Gateway::start_with(&redis, "", config).await;
        recording([&gateway], 1).await;
        let balancer = Balancer::start(Kind::HaProxy, &[Place::of(&gateway)], &[site]).await;
        Self {
            programs,
            balancer,
            gateway,
            redis,
            dir: Dir::new(),
            _machine: machine,
        }
    }

    async fn visit(&self, path: &str) -> Driver {
        Driver::visit(&format!("http://{}{path}", self.balancer.public)).await
    }

    /// Runs one of the programs to its end.
    async fn run(&self, name: &str, argument: &str) {
        static INSTALLED: OnceCell<()> = OnceCell::const_new();
        INSTALLED.get_or_init(install).await;
        let mut command = match name.rsplit_once('.') {
            Some((_, "py")) => Command::new(format!("{FOLDER}/.venv/bin/python3")),
            _ => Command::new("node"),
        };
        // Node resolves imports from the directory of the program.
        let program = self.dir.write(name, &self.programs[name]);
        let modules = self.dir.path().join("node_modules");
        if !modules.exists() {
            std::os::unix::fs::symlink(format!("{FOLDER}/node_modules"), modules).expect("a link");
        }
        command
            .arg(program)
            .arg(argument)
            .env("REDIS_URL", self.redis.url());
        let mut process = Process::start(name, &mut command);
        let status = process.exit().await;
        assert!(status.success(), "{}", process.log());
    }
}

async fn install() {
    let install = tokio::task::spawn_blocking(|| {
        let done = Command::new(format!("{FOLDER}/install")).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "no clients of Redis"
        );
    });
    install.await.expect("they are installed");
}

/// Serves a web site.
pub(crate) async fn serve(site: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(axum::serve(listener, site).into_future());
    address
}

fn nothing_more(_: &Redis, site: Router) -> Router {
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_notifies_with_plain_publish() {
    let shop = Shop::open("notifications.js", nothing_more).await;
    let page = shop.visit("/").await;
    page.until("source?.readyState", json!(1)).await;
    shop.run("notify.py", "").await;
    page.until("shown", json!(["ben: Nice!"])).await;
    shop.run("notify.mjs", "").await;
    page.until("shown", json!(["ben: Nice!", "ben: Nice!"]))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_client_receives_the_whole_answer() {
    let shop = Shop::open("answer.js", nothing_more).await;
    shop.run("answer.py", "answer.7").await;
    let page = shop.visit("/").await;
    page.until("shown.at(-1)", json!("To be, or not\nto be"))
        .await;
    page.until("source.readyState", json!(2)).await;
    // A client that does not close by itself receives `gateway.end`. When it reconnects, it receives 204.
    let closed = "return new Promise(done => { \
                  const open = query => new EventSource(`/events?channel=answer.7&${query}`); \
                  const first = open('since=start'); \
                  first.addEventListener('gateway.end', event => { \
                      first.close(); \
                      const again = open(`last_event_id=${event.lastEventId}`); \
                      again.onerror = () => { if (again.readyState === 2) done(true) } }) })";
    assert_eq!(page.run(closed).await, json!(true));
}

/// A change after the state was read, and before the page subscribes, is not missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_missed_between_a_state_and_its_stream() {
    let with_state = |redis: &Redis, site: Router| {
        let address = redis.address();
        let state = async move || {
            let mut redis = testkit::lab::Commands::connect(address)
                .await
                .expect("Redis runs");
            redis
                .publish("orders", r#"{"version": 2, "paid": true}"#)
                .await;
            axum::Json(json!({"version": 1, "paid": false}))
        };
        site.route("/state", get(state))
    };
    let shop = Shop::open("state.js", with_state).await;
    shop.redis
        .append("orders", r#"{"version": 1, "paid": false}"#)
        .await;
    let page = shop.visit("/").await;
    page.until("shown.map(state => state.version)", json!([1, 2]))
        .await;
    let mut redis = shop.redis.connect().await;
    redis
        .publish("orders", r#"{"version": 3, "paid": true}"#)
        .await;
    page.until("shown.map(state => state.version)", json!([1, 2, 3]))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tabs_share_one_connection() {
    let shop = Shop::open("tab.js", nothing_more).await;
    let page = shop.visit("/tabs").await;
    becomes(&shop.gateway, "sse_gateway_streams", "", 1.0).await;
    // The channel is attached, so later events are live.
    becomes(&shop.gateway, "sse_gateway_attaches_total", "", 1.0).await;
    let mut redis = shop.redis.connect().await;
    redis.publish("news", "hello").await;
    let shown: Vec<Value> = vec![json!(["hello"]); 3];
    page.until(
        "[0, 1, 2].map(tab => frames[tab].eval('shown'))",
        json!(shown),
    )
    .await;
    assert_eq!(
        shop.gateway
            .metrics()
            .await
            .sum("sse_gateway_streams_total"),
        1.0
    );
    page.run("location = 'about:blank'").await;
    becomes(&shop.gateway, "sse_gateway_streams", "", 0.0).await;
}

/// Breaks when an event of a publisher can call `onerror` of a page that reconnects there, like the page in
/// `docs/access.md`. The page would reconnect again and again, and show no later event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_taken_for_a_failure() {
    let text = fs::read_to_string(ACCESS).expect("there is a page about access");
    let program = text
        .split("```")
        .find_map(|block| block.strip_prefix("js\nasync function listen(last)"))
        .expect("a page with tickets");
    let secret = "0123456789abcdef0123456789abcdef";
    let dir = Dir::new();
    let config = format!("[jwt]\nsecret = \"{secret}\"\n");
    let file = dir.write("gateway.toml", &config);
    let mut command = Gateway::command();
    command.arg("token").arg("--config").arg(file);
    command.args(["--subscribe", "private.anna"]);
    let token = command.output().expect("the binary runs").stdout;
    let token = String::from_utf8(token).expect("a token");
    let program = format!(
        "const token = '{}'\nasync function listen(last){program}\nlisten('')",
        token.trim()
    );
    let shop = Shop::with(&program, nothing_more, &config).await;
    let page = shop.visit("/").await;
    becomes(&shop.gateway, "sse_gateway_streams", "", 1.0).await;
    let mut redis = shop.redis.connect().await;
    for payload in [
        "before",
        r#"{"event":"error","data":"x"}"#,
        r#"{"event":"open","data":"x"}"#,
        "after",
    ] {
        redis.publish("private.anna", payload).await;
    }
    page.until("shown", json!(["before", "after"])).await;
    let metrics = shop.gateway.metrics().await;
    assert_eq!(metrics.sum("sse_gateway_streams_total"), 1.0);
}
