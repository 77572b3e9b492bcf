//! `completions`, `man` and `help`: made from the same description as the command line itself.

use std::{fs, io, path::Path};

use bitmesh_node::control::ErrorCode;
use clap::Command;

use crate::{
    args::{self, HelpArgs, ManArgs},
    context::Context,
    failure::Failure,
    output::{self, OutputError},
};

pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "bitmesh", &mut script);
    Ok(output::write_bytes(&script)?)
}

pub(super) fn man(context: &Context, args: &ManArgs) -> Result<(), Failure> {
    let mut root = args::command();
    root.build();
    if let Some(folder) = &args.all {
        fs::create_dir_all(folder).map_err(|error| Failure::file("make", folder, &error))?;
        let mut written = 0_u32;
        write_all(&root, folder, &mut written)?;
        context
            .out
            .note(&format!("wrote {written} pages into {}", folder.display()));
        return Ok(());
    }
    let page = page(&named(root, &args.command)?).map_err(|error| {
        Failure::new(
            ErrorCode::Failure,
            format!("cannot make the page: {error}"),
            "use --help",
        )
    })?;
    Ok(output::write_bytes(&page)?)
}

pub(super) fn help(args: &HelpArgs) -> Result<(), Failure> {
    let mut root = args::command();
    root.build();
    // With the colours that --help has, where it has them.
    named(root, &args.command)?
        .print_help()
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => OutputError::Closed.into(),
            _ => OutputError::Failed(error.to_string()).into(),
        })
}

/// The command of a built tree that is called by these words.
fn named(root: Command, words: &[String]) -> Result<Command, Failure> {
    let mut command = root;
    let mut name = "bitmesh".to_owned();
    for word in words {
        let Some(inner) = command.find_subcommand(word) else {
            return Err(Failure::new(
                ErrorCode::NotFound,
                format!("no command \"{name} {word}\""),
                format!("\"{name} --help\" lists them"),
            ));
        };
        command = inner.clone();
        name = format!("{name} {word}");
    }
    Ok(command)
}

fn write_all(command: &Command, folder: &Path, written: &mut u32) -> Result<(), Failure> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let path = folder.join(format!("{name}.1"));
    page(command)
        .and_then(|page| fs::write(&path, page))
        .map_err(|error| Failure::file("write", &path, &error))?;
    *written += 1;
    command
        .get_subcommands()
        .try_for_each(|inner| write_all(inner, folder, written))
}

/// The page of one command of a tree that was built: clap then knows the command's full name, which
/// is its title with hyphens, as `git-log(1)`, and its usage with spaces.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let command = command.clone().version(env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .manual("BitMesh")
        .render(&mut page)?;
    Ok(page)
}
