//! `sse-gateway migrate`: moves a deployment to another Redis.

use std::io;

use broker::{Migration, NotMigrated, Server};

use crate::{
    output::print,
    signals::{Signals, Wish},
    tls,
};

/// A move, or the end of one that has begun.
#[derive(Debug)]
pub enum Migrate {
    /// Moves the deployment.
    Run(Migration),
    /// Ends a migration that has not moved the deployment yet.
    Abort {
        /// Where the deployment is.
        from: Server,
        /// Where it was to go.
        to: Option<Server>,
    },
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The deployment was not moved.
    #[error("{0}")]
    NotMigrated(#[from] NotMigrated),
    /// The system refused a signal handler.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl Migrate {
    /// Prints progress. The first stop signal ends the relay in order.
    ///
    /// # Errors
    /// When the deployment is not moved. The error says where it is.
    pub async fn run(self) -> Result<(), Error> {
        tls::choose_provider();
        match self {
            Self::Run(migration) => {
                let mut signals = Signals::new()?;
                let stop = async { while signals.next().await == Wish::Reload {} };
                Ok(migration.run(&|line: &str| print(line), stop).await?)
            }
            Self::Abort { from, to } => {
                print(Migration::abort(&from, to.as_ref()).await?);
                Ok(())
            }
        }
    }
}
