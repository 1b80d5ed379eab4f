//! The tables of `docs/clients.md`, which document the results of these tests.

use std::fs;

use crate::story::COLUMNS;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/clients.md");

/// A row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) cells: Vec<String>,
}

impl Row {
    fn line(&self) -> String {
        format!("| {} | {} |", self.name, self.cells.join(" | "))
    }
}

/// The page.
#[derive(Debug)]
pub(crate) struct Docs {
    text: String,
    write: bool,
}

impl Docs {
    /// Reads the page. With `write`, tables are written instead of compared.
    pub(crate) fn read(write: bool) -> Self {
        let text = fs::read_to_string(PAGE).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
        Self { text, write }
    }

    /// Prints the results, and notes a failure for each row that the table does not have.
    pub(crate) fn compare(&mut self, table: &str, rows: &[Row], failures: &mut Vec<String>) {
        let begin = format!("<!-- {table}: written by `./dev test clients --write` -->\n");
        let (before, rest) = self
            .text
            .split_once(&begin)
            .expect("the page has the table");
        let (old, after) = rest
            .split_once("\n<!-- end -->")
            .expect("the table has an end");
        let heads = match table {
            "libraries" => [&["library", "", "package"], &COLUMNS[..]].concat(),
            _ => vec!["publisher", "text", "envelope", "object", "42", "true"],
        };
        let mut lines = vec![
            format!("| {} |", heads.join(" | ")),
            format!("|{}", "---|".repeat(heads.len())),
        ];
        for row in rows {
            let line = row.line();
            eprintln!("{line}");
            let beginning = format!("| {} |", row.name);
            let documented = old.lines().find(|line| line.starts_with(&beginning));
            if documented != Some(&line) && !self.write {
                let documented = documented.unwrap_or("nothing");
                failures.push(format!(
                    "docs/clients.md does not say what was seen; see \"./dev test clients --write\"\n  \
                     it says  {documented}\n  was seen {line}"
                ));
            }
        }
        if self.write {
            // Rows of programs that did not run remain.
            let named = |line: &str| {
                let name = line.strip_prefix("| ")?.split(" | ").next()?;
                rows.iter().find(|row| row.name == name)
            };
            let known: Vec<_> = old.lines().skip(2).collect();
            let kept = known
                .iter()
                .map(|line| named(line).map_or_else(|| (*line).to_owned(), Row::line));
            lines.extend(kept);
            let new = rows
                .iter()
                .map(Row::line)
                .filter(|line| !lines.contains(line));
            let new: Vec<_> = new.collect();
            lines.extend(new);
            let table = lines.join("\n");
            self.text = format!("{before}{begin}{table}\n<!-- end -->{after}");
            fs::write(PAGE, &self.text).expect("the page can be written");
        }
    }
}
