// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfio-user-ctl`: looks at vfio-user devices, and shows that a backend works.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line |
//! | `info` | `info`: gathers, prints; `pci` decodes config space |
//! | `migrate` | `migrate`: from one backend to another; `transfer` does it, paces it, draws it |
//! | `snapshot` | `save`, `load`: the stream to and from files and pipes, which are in `stream` |
//! | `demo` | `demo`: drives the model GPU as a guest's driver would |
//! | `bench` | `bench`: round trips |
//! | `report`, `units` | errors and output; sizes, rates and times as people write them |
//! | `interrupt` | Ctrl-C |

#![deny(clippy::print_stderr, clippy::print_stdout)]

mod args;
mod bench;
mod demo;
mod info;
mod interrupt;
mod migrate;
mod pci;
mod report;
mod snapshot;
mod stream;
mod transfer;
mod units;

use std::process::ExitCode;

use clap::Parser;

use args::{Action, Args};
use report::print;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return report::refuse_arguments(&error),
    };
    let result = match &args.action {
        Action::Info(options) => (info::run(options), options.target.json),
        Action::Demo(options) => return demo::run(options),
        Action::Bench(options) => (bench::run(options), options.target.json),
        Action::Migrate(options) => return migrate::run(options),
        Action::Save(options) => return snapshot::save(options),
        Action::Load(options) => return snapshot::load(options),
    };
    match result {
        (Ok(text), _) => print(&text),
        (Err(error), json) => {
            if json {
                let _ = print(&report::json(&report::failed(error.as_ref())));
            }
            report::fail(error.as_ref())
        }
    }
}
