//! `meshctl`: the mesh from the command line.
//!
//! Reading path: [`client`] (one HTTPS client, errors with remedy) → [`manifest`] (YAML in) → [`apply`],
//! [`get`], [`describe`], [`edit`], [`past`] (history), [`keep`] (backups, audit), [`health`], [`status`], [`proxy`], [`authz`], [`token`], [`ca`] (commands) → [`table`] (text out). [`run`], [`enrol`], [`flows`], [`tap`], [`explain`]
//! and `status --kernel` ([`kernel`]) or `--identities` ([`identities`]) talk to the agent of this node instead:
//! [`agent`].
//!
//! Exit status: 0 done; 1 refused or failed, with one sentence that names cause and remedy; 2 wrong usage.

#![forbid(unsafe_code)]

mod agent;
mod apply;
mod authz;
mod ca;
mod client;
mod describe;
mod edit;
mod enrol;
mod explain;
mod flows;
mod get;
mod health;
mod identities;
mod keep;
mod kernel;
mod manifest;
mod moment;
mod object;
mod past;
mod proxy;
mod replicas;
mod run;
mod status;
mod table;
mod tap;
mod token;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use client::Connection;

/// Looks at and changes a mesh.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the objects of YAML or JSON files.
    Apply(apply::Apply),
    /// Shows what applying files would change.
    Diff(apply::Diff),
    /// Shows objects.
    Get(get::Get),
    /// Shows all that is known of an object.
    Describe(describe::Describe),
    /// Edits an object with $VISUAL or $EDITOR.
    Edit(edit::Edit),
    /// Removes an object, or those of files.
    Delete(get::Delete),
    /// Shows how the endpoints of a service are, and why.
    Health(health::Health),
    /// Shows what was written to an object, by whom, and what it changed.
    History(past::History),
    /// Writes an object as it was at a revision.
    Rollback(past::Rollback),
    /// Writes all that people wrote to a file.
    Backup(keep::Backup),
    /// Fills an empty control plane from a backup.
    Restore(keep::Restore),
    /// Shows who wrote what, and who was refused.
    Audit(keep::Audit),
    /// Shows the nodes, and how far each is.
    Status(status::Status),
    /// Says what policies come to.
    #[command(subcommand)]
    Authz(authz::Authz),
    /// Shows the connections of this node's workloads.
    Flows(flows::Flows),
    /// Shows requests of this node's workloads as they end.
    Tap(tap::Tap),
    /// Says what would become of a request, without sending it.
    Explain(explain::Explain),
    /// Starts a program as a workload of this node.
    Run(run::Run),
    /// Makes a unit, or what lives in a cgroup, a workload of this node.
    Enrol(enrol::Enrol),
    /// Takes a workload out of the mesh; its program goes on.
    Leave(enrol::Leave),
    /// Looks at Envoys and clients of gRPC.
    #[command(subcommand)]
    Proxy(proxy::Proxy),
    /// Makes, lists and revokes tokens.
    #[command(subcommand)]
    Token(token::Token),
    /// Lists the nodes that have joined, and ends memberships.
    #[command(subcommand)]
    Node(ca::Node),
    /// Looks at the certificate authority, and rotates its keys.
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Prints what makes a shell complete the words of this program.
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Apply(apply) => cli.connection.open().and_then(|client| apply.run(&client)),
        Command::Diff(diff) => cli.connection.open().and_then(|client| diff.run(&client)),
        Command::Describe(describe) => cli.connection.open().and_then(|client| describe.run(&client)),
        Command::Edit(edit) => cli.connection.open().and_then(|client| edit.run(&client)),
        Command::History(history) => cli.connection.open().and_then(|client| history.run(&client)),
        Command::Rollback(rollback) => cli.connection.open().and_then(|client| rollback.run(&client)),
        Command::Backup(backup) => cli.connection.open().and_then(|client| backup.run(&client)),
        Command::Restore(restore) => cli.connection.open().and_then(|client| restore.run(&client)),
        Command::Audit(audit) => cli.connection.open().and_then(|client| audit.run(&client)),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut std::io::stdout());
            Ok(())
        }
        Command::Get(get) => cli.connection.open().and_then(|client| get.run(&client)),
        Command::Delete(delete) => cli.connection.open().and_then(|client| delete.run(&client)),
        Command::Health(health) => cli.connection.open().and_then(|client| health.run(&client)),
        Command::Status(status) if status.of_node() => status.show_node(),
        Command::Status(status) => cli.connection.open().and_then(|client| status.run(&client)),
        Command::Authz(authz) => cli.connection.open().and_then(|client| authz.run(&client)),
        Command::Flows(flows) => flows.run(),
        Command::Tap(tap) => tap.run(),
        Command::Explain(explain) => explain.run(&cli.connection),
        Command::Run(run) => run.run(),
        Command::Enrol(enrol) => enrol.run(),
        Command::Leave(leave) => leave.run(),
        Command::Node(node) => cli.connection.open().and_then(|client| node.run(&client)),
        Command::Ca(ca) => cli.connection.open().and_then(|client| ca.run(&client)),
        Command::Proxy(proxy) => cli.connection.open().and_then(|client| proxy.run(&client)),
        Command::Token(token) => cli.connection.open().and_then(|client| token.run(&client)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
