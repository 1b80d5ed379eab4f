//! Chromium under the control of a test: it clicks, types, and reads the page.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::{
    page::PATIENCE,
    support::{Process, eventually, listening},
};

/// A browser with one window.
#[derive(Debug)]
pub(crate) struct Driver {
    client: Client,
    process: Process,
    address: SocketAddr,
    session: String,
}

impl Driver {
    /// Starts the browser and opens `url`.
    pub(crate) async fn visit(url: &str) -> Self {
        let (address, process) = listening("chromedriver", |address| {
            let mut command = Command::new("chromedriver");
            command.arg(format!("--port={}", address.port()));
            command
        })
        .await;
        // The same options as those of the other browsers here.
        let mut options = json!({"args": [
            "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,800",
        ]});
        if let Ok(binary) = env::var("CHROMIUM") {
            options["binary"] = json!(binary);
        }
        // The certificates of these tests have no known issuer.
        let capabilities = json!({"goog:chromeOptions": options, "acceptInsecureCerts": true});
        let capabilities = capabilities.as_object().expect("an object").clone();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://{address}"))
            .await
            .expect("a browser");
        let session = client.session_id().await;
        client.goto(url).await.expect("a page");
        Self {
            session: session.ok().flatten().expect("a session"),
            client,
            process,
            address,
        }
    }

    /// Opens another page.
    pub(crate) async fn go(&self, url: &str) {
        self.client.goto(url).await.expect("a page");
    }

    /// Clicks on the element of this selector.
    pub(crate) async fn click(&self, css: &str) {
        let element = self.client.find(Locator::Css(css)).await;
        let element = element.unwrap_or_else(|error| panic!("{css}: {error}"));
        element
            .click()
            .await
            .unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    /// Replaces the text in the element of this selector.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let element = self.client.find(Locator::Css(css)).await;
        let element = element.unwrap_or_else(|error| panic!("{css}: {error}"));
        element.clear().await.expect("it can be emptied");
        element.send_keys(text).await.expect("it takes keys");
    }

    /// Runs a script and returns its result.
    pub(crate) async fn run(&self, script: &str) -> Value {
        let result = self.client.execute(script, Vec::new()).await;
        result.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until an expression has this value.
    pub(crate) async fn until(&self, expression: &str, expected: Value) {
        let script = format!("return {expression}");
        eventually(
            &format!("{expression} is {expected}"),
            PATIENCE,
            async || match self.run(&script).await {
                value if value == expected => Ok(()),
                value => Err(value.to_string()),
            },
        )
        .await;
    }
}

impl Drop for Driver {
    /// chromedriver ends the browser with its session. The browser would survive chromedriver.
    fn drop(&mut self) {
        let end = || {
            let mut socket = TcpStream::connect(self.address)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let (session, address) = (&self.session, self.address);
            write!(
                socket,
                "DELETE /session/{session} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
            )?;
            // It answers when the browser has ended.
            socket.read(&mut [0; 64])
        };
        if let Err(error) = end() {
            eprintln!("a browser may be left behind: {error}");
        }
        self.process.say_goodbye();
    }
}
