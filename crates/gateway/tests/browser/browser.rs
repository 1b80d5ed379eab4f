//! A real headless browser with a fresh profile, which visits one page.

use std::{env, process::Command};

use crate::support::{Dir, Process};

/// The browsers that the gateway is tested with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Chromium,
    Firefox,
}

/// A running browser.
#[derive(Debug)]
pub(crate) struct Browser {
    process: Process,
    /// Contains the profile.
    _profile: Dir,
}

impl Browser {
    /// Starts it with `url` as its only page.
    pub(crate) fn visit(engine: Engine, url: &str) -> Self {
        let profile = Dir::new();
        let mut command = match engine {
            Engine::Chromium => chromium(&profile),
            Engine::Firefox => firefox(&profile),
        };
        // Files that the browser stores in its user's home are removed with the profile.
        command.env("HOME", profile.path()).arg(url);
        Self {
            process: Process::start(format!("{engine:?}"), &mut command),
            _profile: profile,
        }
    }
}

impl Drop for Browser {
    /// Asks the browser to close. After a SIGKILL, its other processes would still write to the
    /// profile during its removal.
    fn drop(&mut self) {
        self.process.say_goodbye();
    }
}

fn chromium(profile: &Dir) -> Command {
    let mut command = Command::new(env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned()));
    command
        .arg("--headless")
        .arg(format!("--user-data-dir={}", profile.path().display()))
        // The sandbox refuses to run as root, and containers refuse the sandbox. The browser visits
        // only our own page.
        .arg("--no-sandbox")
        // Containers have little shared memory.
        .arg("--disable-dev-shm-usage")
        .arg("--disable-gpu")
        .arg("--disable-quic")
        // No questions, and no connections to the vendor.
        .args(["--no-first-run", "--no-default-browser-check"])
        .args(["--disable-background-networking", "--disable-sync"])
        .args(["--disable-component-update", "--disable-breakpad"]);
    command
}

fn firefox(profile: &Dir) -> Command {
    // No questions, and no connections to the vendor.
    profile.write(
        "user.js",
        r#"
user_pref("app.normandy.enabled", false);
user_pref("app.update.enabled", false);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("browser.safebrowsing.downloads.remote.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("browser.search.update", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.healthreport.uploadEnabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("dom.push.connection.enabled", false);
user_pref("extensions.update.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("toolkit.telemetry.enabled", false);
user_pref("toolkit.telemetry.unified", false);
"#,
    );
    let mut command =
        Command::new(env::var("FIREFOX").unwrap_or_else(|_| "firefox-esr".to_owned()));
    command
        .args(["--headless", "--no-remote", "--profile"])
        .arg(profile.path());
    command
}
