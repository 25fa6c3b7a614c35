//! A real PostgreSQL for an example or a test: made in a temporary directory, reached over a Unix socket, gone at the end.
//!
//! It needs the server's programs, as Debian's package `postgresql` brings them. It never runs as root, because PostgreSQL
//! refuses to: then it becomes the user `postgres`, or `nobody`.

#![allow(dead_code, reason = "each example uses its part")]
#![allow(clippy::disallowed_methods, reason = "files of another program, in a directory of its own")]

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::Result;

/// What to do where [`Postgres::programs`] finds nothing.
pub(crate) const ABSENT: &str = "PostgreSQL is not installed: apt-get install postgresql";

/// How long a server may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the server until standard input ends. That is when whoever started it stops it or is gone, also by SIGKILL; so it
/// outlives nobody. SIGINT is PostgreSQL's fast shutdown: <https://www.postgresql.org/docs/15/server-shutdown.html>. (A shell
/// has what it starts in the background ignore SIGINT; PostgreSQL sets handlers of its own.)
const GUARD: &str = r#"exec 3<&0
"$@" </dev/null 3<&- &
server=$!
(read -r _ <&3; kill -INT "$server" 2>/dev/null) &
exec 3<&-
wait "$server""#;

/// A PostgreSQL server of the caller's own. Dropping it stops it and removes its data.
pub(crate) struct Postgres {
    guard: Child,
    dir: TempDir,
}

impl Postgres {
    /// The directory of `initdb` and `postgres`: on the PATH, or the newest of Debian's; `None` if they are not installed.
    pub(crate) fn programs() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
        let mut debian: Vec<PathBuf> = debian.map(|version| version.path()).collect();
        debian.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
        let debian = debian.into_iter().rev().map(|version| version.join("bin"));
        std::env::split_paths(&path)
            .chain(debian)
            .find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
    }

    /// Makes a database cluster, starts a server on it and waits until it answers. [`ABSENT`] is the error where there is no
    /// PostgreSQL.
    pub(crate) async fn start() -> Result<Postgres> {
        let programs = Postgres::programs().ok_or(ABSENT)?;
        let dir = tempfile::Builder::new().prefix("fencepost-postgres-").tempdir()?;
        let user = unprivileged_user()?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid))?;
        }
        let data = dir.path().join("data");

        // Whoever can reach the socket may come in: its directory is open to this user alone. The data need not survive.
        let mut initdb = command(&programs.join("initdb"), user, dir.path());
        initdb.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync", "--pgdata"]);
        let made = initdb.arg(&data).stdin(Stdio::null()).output()?;
        if !made.status.success() {
            return Err(format!("initdb ended with {}: {}", made.status, String::from_utf8_lossy(&made.stderr)).into());
        }

        let messages = std::fs::File::create(dir.path().join("messages"))?;
        let mut guard = command(Path::new("sh"), user, dir.path());
        guard.args(["-c", GUARD, "sh"]).arg(programs.join("postgres"));
        guard.arg("-D").arg(&data).arg("-k").arg(dir.path()).args(["-c", "listen_addresses="]);
        let guard = guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(messages).spawn()?;
        let mut postgres = Postgres { guard, dir };
        tokio::time::timeout(PATIENCE, postgres.answers())
            .await
            .unwrap_or_else(|_| Err(format!("PostgreSQL did not answer within {PATIENCE:?}").into()))
            .map_err(|error| format!("{error}; it said: {}", postgres.last_message()))?;
        Ok(postgres)
    }

    /// A new connection, as the superuser.
    pub(crate) async fn connect(&self) -> Result<Client> {
        connect(&self.address()).await
    }

    /// What [`connect`] takes, also in another process of the same user or of root.
    pub(crate) fn address(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.dir.path().display())
    }

    /// Waits until a connection can be made, or the server has ended.
    async fn answers(&mut self) -> Result {
        while let Err(error) = self.connect().await {
            if let Some(status) = self.guard.try_wait()? {
                return Err(format!("PostgreSQL ended with {status} before it answered ({error})").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn last_message(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("messages")).unwrap_or_default();
        text.lines().last().unwrap_or("nothing").to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // If it cannot be waited for, it is gone.
        let _ = self.guard.wait();
    }
}

/// Connects to a server by [`Postgres::address`].
pub(crate) async fn connect(address: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    // Its end is told to whoever uses the client.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// A command in the directory of the server, as the user that it runs as.
fn command(program: &Path, user: Option<(u32, u32)>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).env_remove("PGDATA").env("LC_ALL", "C").process_group(0);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Whom to become in place of root; `None` for everybody else.
fn unprivileged_user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let ids = |name: &str| {
        let fields: Vec<&str> =
            users.lines().map(|line| line.split(':').collect()).find(|fields: &Vec<&str>| fields[0] == name)?;
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    };
    let found = ids("postgres").or_else(|| ids("nobody"));
    found.map(Some).ok_or_else(|| "PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'".into())
}
