//! `./dev`, as far as it can be tested without a build.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::Path};

use tokio::process::Command;

use crate::support::Dir;

/// The root of the repository.
fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs `./dev` in `dir`. Returns whether it succeeded, its output and its errors. Programs in `bin` there precede all
/// installed ones.
async fn dev(dir: &Path, arguments: &[&str]) -> (bool, String, String) {
    let path = env::var("PATH").expect("there is a PATH");
    let output = Command::new(dir.join("dev"))
        .args(arguments)
        .env("PATH", format!("{}:{path}", dir.join("bin").display()))
        .output()
        .await
        .expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let success = output.status.success();
    (success, text(output.stdout), text(output.stderr))
}

/// Breaks when a command takes `--help` for something else, or has no help.
#[tokio::test]
async fn each_command_of_dev_has_help() {
    let (success, usage, _) = dev(top(), &["--help"]).await;
    assert!(success);
    let commands = usage
        .lines()
        .filter_map(|line| line.strip_prefix("./dev ")?.split(' ').next())
        .filter(|name| *name != "COMMAND");
    let commands: Vec<_> = commands.collect();
    assert!(commands.len() >= 8, "{commands:?}");
    for name in commands {
        for help in [&["--help"][..], &["-h"]] {
            let arguments = [&[name], help].concat();
            let (success, text, errors) = dev(top(), &arguments).await;
            assert!(success, "{name}: {errors}");
            assert!(text.starts_with(&format!("./dev {name}")), "{text}");
            assert!(text.lines().count() > 1, "{text}");
        }
    }
}

/// Breaks when `./dev` looks for a program in `target`, although `CARGO_TARGET_DIR` or Cargo's configuration puts it
/// elsewhere.
#[tokio::test]
async fn dev_runs_programs_from_where_cargo_puts_them() {
    let dir = Dir::new();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
        fs::write(&path, text).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path
    };
    for name in ["dev", "Cargo.toml"] {
        write(
            name,
            &fs::read_to_string(top().join(name)).expect("it is there"),
        );
    }
    let script = "#!/bin/sh\necho \"$(basename \"$0\") $*\"\n";
    let built =
        ["loadtest", "sse-gateway"].map(|name| write(&format!("else where/{name}"), script));
    // Cargo's messages for a library, a new program, and a program that was built before.
    let [loadtest, gateway] = built.map(|path| path.display().to_string());
    let said = format!(
        r#"{{"reason":"compiler-artifact","target":{{"name":"sse"}},"executable":null,"fresh":true}}
{{"reason":"compiler-artifact","target":{{"name":"loadtest"}},"executable":"{loadtest}","fresh":false}}
{{"reason":"compiler-artifact","target":{{"name":"sse-gateway"}},"executable":"{gateway}","fresh":true}}
{{"reason":"build-finished","success":true}}"#
    );
    write(
        "bin/cargo",
        &format!("#!/bin/sh\ncat <<'END'\n{said}\nEND\n"),
    );
    // A test installs nothing.
    write(
        "bin/apt-get",
        "#!/bin/sh\necho \"apt-get $*\" >&2\nexit 1\n",
    );
    let (success, output, errors) = dev(dir.path(), &["chaos", "--seed", "7"]).await;
    assert!(success, "{output}{errors}");
    assert_eq!(
        output,
        "loadtest chaos --report .dev/chaos/faults.md --seed 7\n"
    );
    let (success, output, errors) = dev(dir.path(), &["chaos", "--help"]).await;
    assert!(success, "{output}{errors}");
    assert!(output.starts_with("./dev chaos"), "{output}");
    assert!(output.ends_with("\n\nloadtest chaos --help\n"), "{output}");

    // As `./dev up` leaves it.
    write(".dev/8080/build.json", &said);
    write(".dev/8080/gateway.toml", "");
    let (success, output, errors) = dev(dir.path(), &["token", "--subject", "anna"]).await;
    assert!(success, "{output}{errors}");
    assert_eq!(
        output,
        "sse-gateway token --config .dev/8080/gateway.toml --subject anna\n"
    );
}
