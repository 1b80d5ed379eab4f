//! `sse-gateway migrate`: moves a deployment to another Redis.

use std::io;

use broker::{Migration, NotMigrated, Server};

use crate::{
    output::print,
    signals::{Signals, Wish},
    tls,
};

/// A migration, or its end before the deployment has moved.
#[derive(Debug)]
pub enum Migrate {
    /// Moves the deployment.
    Run(Migration),
    /// Ends a migration that has not moved the deployment yet.
    Abort {
        /// The Redis of the deployment.
        from: Server,
        /// The Redis that it was to move to.
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
    /// When the deployment is not moved. The error names its state.
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
