//! The languages of the programs: whether they are available, and how the programs are installed and built.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use tokio::task::{JoinSet, spawn_blocking};

use crate::libraries::Library;

/// The folder of the programs.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// A language, with the tools that build its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tool {
    Go,
    Node,
    Python,
    Jvm,
    Php,
    Ruby,
}

impl Tool {
    /// The languages of the clients. They have a folder each.
    const OF_CLIENTS: [Self; 4] = [Self::Go, Self::Node, Self::Python, Self::Jvm];

    /// The languages of the helpers for a Redis Cluster.
    pub(crate) const OF_HELPERS: [Self; 5] =
        [Self::Go, Self::Node, Self::Python, Self::Php, Self::Ruby];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Go => "Go",
            Self::Node => "Node",
            Self::Python => "Python",
            Self::Jvm => "JVM",
            Self::Php => "PHP",
            Self::Ruby => "Ruby",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Node => "node",
            Self::Python => "python",
            Self::Jvm => "java",
            Self::Php => "php",
            Self::Ruby => "ruby",
        }
    }

    fn sources(self) -> PathBuf {
        Path::new(SOURCES).join(self.folder())
    }

    /// The folder of installed files, below `target`.
    pub(crate) fn installed(self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("clients")
            .join(self.folder())
    }

    /// The version of a package, from the file that pins it.
    pub(crate) fn version(self, package: &str) -> String {
        let (file, before) = match self {
            Self::Go => ("go.mod", format!("{package} v")),
            Self::Node => ("package.json", format!("\"{package}\": \"")),
            Self::Python => ("requirements.in", format!("\n{package}==")),
            Self::Jvm => (
                "pom.xml",
                format!("<artifactId>{package}</artifactId>\n      <version>"),
            ),
            Self::Php | Self::Ruby => unreachable!("its libraries are packages of the system"),
        };
        let text = "\n".to_owned() + &read(&self.sources().join(file));
        let (_, rest) = text
            .split_once(&before)
            .unwrap_or_else(|| panic!("{file} has no {package}"));
        let end = rest.find(['"', '<', '\n', ' ']).unwrap_or(rest.len());
        rest[..end].to_owned()
    }

    /// The reason why its programs cannot run here, if any.
    fn lacks(self) -> Option<String> {
        let needs: &[(&str, &[&str], [u32; 2])] = match self {
            Self::Go => &[("go", &["version"], [1, 26])],
            Self::Node => &[
                ("node", &["--version"], [20, 15]),
                ("npm", &["--version"], [8, 0]),
            ],
            Self::Python => &[("python3", &["--version"], [3, 10])],
            Self::Jvm => &[
                ("javac", &["-version"], [17, 0]),
                ("mvn", &["--version"], [3, 6]),
            ],
            Self::Php => &[("php", &["--version"], [8, 0])],
            Self::Ruby => &[("ruby", &["--version"], [3, 0])],
        };
        // Libraries that are packages of the system.
        let library: Option<(&str, &[&str], &str)> = match self {
            Self::Php => Some((
                "php",
                &["-r", "exit(extension_loaded('redis') ? 0 : 1);"],
                "php has no extension redis (Debian: php-redis)",
            )),
            Self::Ruby => Some((
                "ruby",
                &["-e", "require 'redis'; exit(Redis::VERSION < '5')"],
                "ruby has no redis 4 (Debian: ruby-redis)",
            )),
            _ => None,
        };
        let lacks_library = || {
            let (program, arguments, message) = library?;
            let output = Command::new(program).args(arguments).output();
            let is_there = output.is_ok_and(|output| output.status.success());
            (!is_there).then(|| message.to_owned())
        };
        let lacks_program = needs.iter().find_map(|(program, arguments, least)| {
            let output = Command::new(program).args(*arguments).output();
            let Ok(output) = output else {
                return Some(format!("{program} is not in PATH"));
            };
            let output = [output.stdout, output.stderr].concat();
            let output = String::from_utf8_lossy(&output);
            let found = numbers(&output);
            let [major, minor] = least;
            let what = match found {
                [0, 0] => "this one does not say its version".to_owned(),
                [major, minor] => format!("this is {major}.{minor}"),
            };
            (found < *least)
                .then(|| format!("{program} {major}.{minor} or later is needed, {what}"))
        });
        lacks_program.or_else(lacks_library)
    }

    /// Installs the libraries and builds the programs, unless that was done with the same files.
    fn install(self) {
        if matches!(self, Self::Php | Self::Ruby) {
            return;
        }
        let (sources, installed) = (self.sources(), self.installed());
        let mut files = String::new();
        gather(&sources, &mut files);
        let stamp = installed.join("made-from");
        if fs::read_to_string(&stamp).is_ok_and(|made| made == files) {
            return;
        }
        fs::remove_dir_all(&installed).ok();
        fs::create_dir_all(&installed).expect("a folder below target");
        let run = |program: &str, folder: &Path, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(folder);
            // The installed toolchain is new enough.
            command.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
            let done = command.output().expect("it starts");
            assert!(
                done.status.success(),
                "{command:?}:\n{}{}",
                String::from_utf8_lossy(&done.stdout),
                String::from_utf8_lossy(&done.stderr)
            );
        };
        let into = installed.display().to_string();
        match self {
            Self::Go => run(
                "go",
                &sources,
                &[
                    "build",
                    "-mod=readonly",
                    "-o",
                    &format!("{into}/clients"),
                    ".",
                ],
            ),
            Self::Node => {
                // Node resolves libraries from the directory of the program.
                for entry in fs::read_dir(&sources).expect("it is there") {
                    let path = entry.expect("an entry").path();
                    if path.is_file() {
                        let name = path.file_name().expect("a name");
                        fs::copy(&path, installed.join(name)).expect("a copy");
                    }
                }
                let flags = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
                run("npm", &installed, &flags);
            }
            Self::Python => {
                run("python3", &sources, &["-m", "venv", &into]);
                let pip = format!("{into}/bin/pip");
                let flags = [
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-compile",
                ];
                let list = ["--require-hashes", "-r", "requirements.txt"];
                run(&pip, &sources, &[&flags[..], &list].concat());
            }
            Self::Jvm => {
                let into = format!("-Dinto={into}");
                run(
                    "mvn",
                    &sources,
                    &["--quiet", "--batch-mode", &into, "compile"],
                );
            }
            Self::Php | Self::Ruby => {}
        }
        fs::write(stamp, files).expect("a file below target");
    }

    /// The command that runs a program. Its arguments follow: the library, how it is used, and the rest.
    fn command(self) -> Command {
        let installed = self.installed();
        match self {
            Self::Go => Command::new(installed.join("clients")),
            Self::Node => {
                let mut command = Command::new("node");
                command.arg(installed.join("main.mjs"));
                command
            }
            Self::Python => {
                let mut command = Command::new(installed.join("bin/python3"));
                command.arg(self.sources().join("main.py"));
                // No compiled files in the directory of the sources.
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Self::Jvm => {
                let classes = installed.join("classes");
                let libraries = installed.join("libraries/*");
                let mut command = Command::new("java");
                // Many programs start at once, and each runs only briefly.
                command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"]);
                command.arg("-cp");
                command.arg(format!("{}:{}", classes.display(), libraries.display()));
                command.arg("Main");
                command
            }
            Self::Php | Self::Ruby => unreachable!("it has no program of a client"),
        }
    }
}

/// The languages, installed or not.
#[derive(Debug)]
pub(crate) struct Tools(BTreeMap<Tool, Option<String>>);

impl Tools {
    /// Installs the tools for these libraries, in all languages at once.
    pub(crate) async fn prepare(libraries: &[&Library], publishers: bool, helpers: bool) -> Self {
        let of_clients = Tool::OF_CLIENTS
            .into_iter()
            .filter(|tool| publishers || libraries.iter().any(|library| library.tool == *tool));
        let of_helpers = Tool::OF_HELPERS.into_iter().filter(|_| helpers);
        let needed: BTreeSet<_> = of_clients.chain(of_helpers).collect();
        let mut installs = JoinSet::new();
        for tool in needed {
            installs.spawn(async move {
                let done = spawn_blocking(move || {
                    let (lacks, started) = (tool.lacks(), Instant::now());
                    if lacks.is_none() {
                        tool.install();
                        eprintln!("{}: installed in {:.0?}", tool.name(), started.elapsed());
                    }
                    lacks
                });
                (tool, done.await.expect("it is installed"))
            });
        }
        Self(installs.join_all().await.into_iter().collect())
    }

    /// Whether its programs can run.
    pub(crate) fn has(&self, tool: Tool) -> bool {
        self.0.get(&tool).is_some_and(Option::is_none)
    }

    /// The missing languages, and why they are missing.
    pub(crate) fn missing(&self) -> impl Iterator<Item = (Tool, &str)> {
        let missing = self.0.iter();
        missing.filter_map(|(tool, lacks)| Some((*tool, lacks.as_deref()?)))
    }

    /// The command for a program with these arguments.
    pub(crate) fn command(&self, tool: Tool, arguments: &[&str]) -> Command {
        let mut command = tool.command();
        command.args(arguments);
        command
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names and contents of all files of a folder.
fn gather(folder: &Path, files: &mut String) {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            // A developer may have installed the libraries for an editor.
            if !path.ends_with("node_modules")
                && !path.ends_with("target")
                && !path.ends_with("__pycache__")
            {
                gather(&path, files);
            }
        } else {
            *files += &format!("== {}\n{}", path.display(), read(&path));
        }
    }
}

/// The first two numbers of a version.
fn numbers(text: &str) -> [u32; 2] {
    // Maven's answer contains colour codes.
    let text = text.replace("\u{1b}[1m", "");
    let start = text.find(|character: char| character.is_ascii_digit());
    let version = &text[start.unwrap_or(text.len())..];
    let mut numbers = version
        .split(|character: char| !character.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)]
}
