//! Which server process answers: by its run id, or by a name in the memory of its function library.

use redis::{Arg, Client, Cmd, ConnectionInfo, aio::MultiplexedConnection};

use super::{Node, handshake::is_without_library};
use crate::{
    Error,
    call::Function,
    process::{ServerProcess, open},
    wire::Listener,
};

impl Node {
    /// The server process at the other end of a connection.
    pub(super) async fn server_process(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<ServerProcess, Error> {
        let info = Cmd::new().arg("INFO").arg("server").to_owned();
        let info: String = match info.query_async(connection).await.map_err(Error::of) {
            Ok(info) => info,
            Err(Error::Forbidden(_)) => String::new(),
            Err(error) => return Err(error),
        };
        if let Some(process) = ServerProcess::read(&info) {
            return Ok(process);
        }
        if self.deployment().warns_of_hidden_run() {
            tracing::warn!(
                "redis shows no run id in INFO: a restart of redis, and another version or configuration of the function \
                 library, count as a failover, and clients receive a gap event"
            );
        }
        let ask = self.ask_for_name();
        self.metrics().function(Function::Process);
        let name = match ask.query_async(connection).await {
            Err(error) if is_without_library(&error) => {
                self.load(connection).await?;
                ask.query_async(connection).await
            }
            answer => answer,
        };
        Ok(ServerProcess::named(name.map_err(Error::of)?))
    }

    /// The server process at the other end of a connection for messages.
    pub(super) async fn process_of(
        &self,
        listener: &mut Listener,
        server: &ConnectionInfo,
    ) -> Result<ServerProcess, Error> {
        let failed = |error| self.failed(server, &error);
        let info = listener.ask(&[b"INFO", b"server"]).await.map_err(failed)?;
        let info =
            String::from_utf8(info.unwrap_or_default().into()).map_err(|_| Error::Malformed)?;
        if let Some(process) = ServerProcess::read(&info) {
            return Ok(process);
        }
        // The function is there, or is loaded now.
        let (mut connection, _) = self.connection().await?;
        self.server_process(&mut connection).await?;
        let ask = self.ask_for_name();
        let words: Vec<_> = ask
            .args_iter()
            .map(|arg| match arg {
                Arg::Simple(word) => word,
                _ => &[],
            })
            .collect();
        let name = listener.ask(&words).await.map_err(failed)?;
        let name = name.ok_or(Error::Malformed)?;
        let name = String::from_utf8(name.into()).map_err(|_| Error::Malformed)?;
        Ok(ServerProcess::named(name))
    }

    /// The name or run id of the server process there.
    pub(super) async fn run_at(&self, info: &ConnectionInfo) -> Result<String, Error> {
        let mut connection = open(&Client::open(info.clone())?).await?;
        let process = self.server_process(&mut connection).await?;
        Ok(process.run)
    }

    /// Asks for the name that the function library gave its process, or gives it one.
    fn ask_for_name(&self) -> Cmd {
        let name = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let partition = self.first_partition().unwrap_or_default();
        let call = self.deployment().new_call(Function::Process, partition);
        call.arg(&name).command()
    }
}
