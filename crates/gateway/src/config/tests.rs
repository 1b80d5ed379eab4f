//! Values that are wrong, and values that are probably mistakes.

use super::{command::one_line, *};

fn config(args: &[&str]) -> Result<Config, Invalid> {
    let args = [&["sse-gateway"], args].concat();
    Config::new(Flags::try_parse_from(args).map_err(|error| one_line(&error))?)
}

#[test]
fn a_wrong_value_is_one_line_that_names_it() {
    for (args, expected) in [
        (
            &["--partitions", "0"][..],
            "invalid value '0' for '--partitions <N>': 0 is not in 1..=1024",
        ),
        (
            &["--partitions", "1024", "--max-channels", "250"],
            "--partitions or --max-channels has to be at most 128: ",
        ),
        (
            &["--heartbeat", "soon"],
            "invalid value 'soon' for '--heartbeat <TIME>'",
        ),
        (
            &["--redis-url", "http://x"],
            "--redis-url: http:// is not a scheme of redis: ",
        ),
        (
            &["--channel-prefix", ""],
            "--channel-prefix cannot be empty",
        ),
        (
            &["--no-such-flag"],
            "unexpected argument '--no-such-flag' found",
        ),
        (&["--config", "/no/such/file"], "/no/such/file: "),
        (&["--max-payload", "1GB"], "invalid value '1GB'"),
        (
            &["--max-payload", "17MiB"],
            "invalid value '17MiB' for '--max-payload <BYTES>': it has to be 1 byte to 16MiB",
        ),
        (
            &["--max-pending", "4095KiB"],
            "invalid value '4095KiB' for '--max-pending <BYTES>': it has to be at least 4MiB",
        ),
        (
            &["--redis-url", "redis://127.0.0.1/1"],
            "--redis-url: a deployment needs a Redis of its own",
        ),
        (
            &["--redis-url", "rediss://x/#insecure"],
            "--redis-url: #insecure is not supported",
        ),
        (
            &["--redis-sentinels", "a,b", "--redis-url", "unix:///x"],
            "--redis-sentinels: --redis-url has to be redis://NAME",
        ),
        (&["--redis-sentinels", "a,http://b"], "--redis-sentinels: "),
        (
            &["--redis-sentinels", "rediss://a/#insecure"],
            "--redis-sentinels: ",
        ),
        (
            &["--redis-ca", "/no/such/file"],
            "--redis-ca: /no/such/file: ",
        ),
        (
            &["--redis-ca", "Cargo.toml"],
            "--redis-ca, --redis-certificate and --redis-key need rediss://",
        ),
        (
            &["--redis-url", "rediss://x", "--redis-ca", "Cargo.toml"],
            "--redis-ca: no certificate in PEM",
        ),
        (
            &[
                "--redis-url",
                "rediss://x",
                "--redis-certificate",
                "Cargo.toml",
                "--redis-key",
                "Cargo.toml",
            ],
            "--redis-certificate, --redis-key: no certificate in PEM",
        ),
        (
            &["--redis-key", "x"],
            "the following required arguments were not provided: --redis-certificate <FILE>",
        ),
        (
            &["--listen", "0.0.0.0:8080"],
            "--listen 0.0.0.0:8080 is not only",
        ),
        (
            &["--proxy-protocol"],
            "--proxy-protocol needs --trusted-proxies",
        ),
        (
            &["--trusted-proxies", "10.0.0.0/33"],
            "invalid value '10.0.0.0/33'",
        ),
        (&["--cors-origins", "*"], "invalid value '*'"),
        (
            &["--console-demo", "--listen", "0.0.0.0:8080"],
            "--console-demo gives the token",
        ),
        (
            &["--trace-ratio", "1.01"],
            "invalid value '1.01' for '--trace-ratio <SHARE>': a share is needed, 0 to 1, such as 0.01",
        ),
        (&["--trace-ratio", "NaN"], "invalid value 'NaN'"),
        (
            &["--trace-ratio", "50%"],
            "invalid value '50%' for '--trace-ratio <SHARE>': a share is needed",
        ),
        (
            &["--listen", "8080"],
            "invalid value '8080' for '--listen <ADDRESS>': an IP address and a port are needed, such as 127.0.0.1:8080",
        ),
        (
            &["--listen", ":8080"],
            "invalid value ':8080' for '--listen",
        ),
        (
            &["--admin-listen", "localhost:9090"],
            "invalid value 'localhost:9090' for '--admin-listen <ADDRESS>': an IP address",
        ),
        (
            &["--workers", "0"],
            "invalid value '0' for '--workers <N>': a number of threads is needed, 1 or more",
        ),
        (
            &["--console", "false"],
            "unrecognized subcommand 'false'; there are healthcheck, revoke, doctor, check, token, migrate, keys. --console and",
        ),
        (&["--redis", "x"], "unexpected argument '--redis' found; "),
        (
            &["revoke"],
            "the following required arguments were not provided: <SUBJECT>",
        ),
        (
            &["--log-format", "xml"],
            "invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]",
        ),
        (
            &["--redis-url", "localhost:6379"],
            "--redis-url: \"localhost:6379\" has no scheme: a URL is needed, such as redis://localhost:6379, ",
        ),
        (
            &["--redis-url", "user:5113@localhost"],
            "--redis-url: it has no scheme: a URL is needed, such as redis://[user:password@]host[:port]",
        ),
        (
            &["--redis-url", "redis://user:5113@:x"],
            "--redis-url: it cannot be read",
        ),
        (
            &["--trusted-proxies", "10.0.0.1/8"],
            "invalid value '10.0.0.1/8' for '--trusted-proxies <NETWORKS>': \"10.0.0.1/8\" is neither the network \
             10.0.0.0/8 nor the address 10.0.0.1",
        ),
        (
            &["--otlp-endpoint", "collector:4317"],
            "--otlp-endpoint: a URL",
        ),
        (
            &["--retry", "9999y"],
            "invalid value '9999y' for '--retry <TIME>': it has to be at most 30d",
        ),
        (
            &["--ticket-ttl", "0s"],
            "invalid value '0s' for '--ticket-ttl <TIME>': it has to be at least 1s",
        ),
        (
            &["--max-stream-age", "5ms"],
            "invalid value '5ms' for '--max-stream-age <TIME>': it has to be at least 1s, or 0s for never",
        ),
        (
            &["--canary-interval", "5ms"],
            "invalid value '5ms' for '--canary-interval <TIME>': it has to be at least 100ms, or 0s for none",
        ),
        (
            &["--max-channels", "0"],
            "invalid value '0' for '--max-channels <N>': it has to be at least 1",
        ),
        (
            &["--tls-key", "x"],
            "the following required arguments were not provided: --tls-certificate <FILE>",
        ),
        (
            &["--channel-prefix", "sse"],
            "--channel-prefix cannot be empty",
        ),
    ] {
        let error = config(args).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(!error.contains('\n') && !error.contains("5113"), "{error}");
    }
}

#[test]
fn settings_that_are_probably_mistakes_are_named() {
    let public = ["--listen", "0.0.0.0:8080", "--public-channels", "*"];
    for (args, expected) in [
        (
            &["--publish-token", "secret"][..],
            Some("a publish token has fewer than 16"),
        ),
        (&["--publish-token", "0123456789abcdef"], None),
        (
            &["--trusted-proxies", "0.0.0.0/0"],
            Some("--trusted-proxies 0.0.0.0/0 "),
        ),
        (&["--trusted-proxies", "10.0.0.0/8,fc00::/7"], None),
        (&["--heartbeat", "2m"], Some("--heartbeat 2m: ")),
        (
            &["--cors-origins", "https://*.co.uk"],
            Some("--cors-origins https://*.co.uk "),
        ),
        (
            &["--cors-origins", "https://*.github.io"],
            Some("--cors-origins https://*.github.io "),
        ),
        (
            &[
                "--cors-origins",
                "https://*.example.co.uk,http://*.corp.intern",
            ],
            None,
        ),
    ] {
        let doubts = config(&[&public[..], args].concat()).unwrap().doubts;
        assert_eq!(
            doubts.len(),
            usize::from(expected.is_some()),
            "{args:?} {doubts:?}"
        );
        assert!(
            doubts
                .iter()
                .all(|doubt| doubt.starts_with(expected.unwrap())),
            "{doubts:?}"
        );
    }
}

#[test]
fn a_public_address_needs_a_rule_for_subscribers() {
    let check = |listen: &str, more: &[&str]| {
        config(&[&["--listen", listen], more].concat()).map_err(|error| error.to_string())
    };
    for local in ["127.0.0.1:80", "[::1]:80"] {
        check(local, &[]).unwrap();
    }
    for open in ["0.0.0.0:80", "unix:/run/a"] {
        for more in [&[][..], &["--publish-token", "a"]] {
            let error = check(open, more).unwrap_err();
            assert!(error.contains("--public-channels"), "{error}");
        }
        check(open, &["--public-channels", ""]).unwrap();
    }
}

#[test]
fn either_partitions_or_channels_may_be_many() {
    for (partitions, channels) in [("128", "100000"), ("1024", "128"), ("1", "100000")] {
        config(&["--partitions", partitions, "--max-channels", channels]).unwrap();
    }
}

#[test]
fn a_secret_is_not_shown() {
    let flags = ["sse-gateway", "--publish-token", "-5113"];
    let flags = Flags::try_parse_from(flags).unwrap();
    assert!(!format!("{flags:?}").contains("5113"));
}

#[test]
fn the_manual_is_consistent() {
    Flags::command().debug_assert();
}
