// What must not be in `crates/integrity`, an entry of its `clippy.toml` a line. Read by the `pure` stage, never run.
#![allow(unused, deprecated)]

use std::path::Path;
use std::{env, fs, io, net, os, process, thread, time};

type Files = (fs::File, fs::OpenOptions, fs::DirBuilder, fs::DirEntry, fs::ReadDir, fs::Metadata, fs::Permissions);
type Streams = (fs::FileTimes, io::Stdin, io::Stdout, io::Stderr, io::PipeReader, io::PipeWriter);
type Descriptors<'a> = (os::fd::OwnedFd, os::fd::BorrowedFd<'a>);
type Network = (net::TcpStream, net::TcpListener, net::UdpSocket);
type Sockets = (os::unix::net::UnixStream, os::unix::net::UnixListener, os::unix::net::UnixDatagram);
type Processes = (process::Command, process::Child, process::Stdio, process::ExitCode);
type Clocks = (time::SystemTime, time::Instant);
type Threads<'s, 'e> = (thread::Builder, thread::JoinHandle<()>, &'s thread::Scope<'s, 'e>, thread::Thread);
type Environment = (env::Args, env::ArgsOs, env::Vars, env::VarsOs);

fn files() {
    fs::canonicalize("");
    fs::copy("", "");
    fs::create_dir("");
    fs::create_dir_all("");
    fs::exists("");
    fs::hard_link("", "");
    fs::metadata("").map(|facts| fs::set_permissions("", facts.permissions()));
    fs::read("");
    fs::read_dir("");
    fs::read_link("");
    fs::read_to_string("");
    fs::remove_dir("");
    fs::remove_dir_all("");
    fs::remove_file("");
    fs::rename("", "");
    fs::symlink_metadata("");
    fs::write("", "");
    os::unix::fs::chown("", None, None);
    os::unix::fs::chroot("");
    os::unix::fs::fchown(io::stdin(), None, None);
    os::unix::fs::lchown("", None, None);
    os::unix::fs::symlink("", "");
}

fn paths(path: &Path) {
    path.canonicalize();
    path.exists();
    path.is_dir();
    path.is_file();
    path.is_symlink();
    path.metadata();
    path.read_dir();
    path.read_link();
    path.symlink_metadata();
    path.try_exists();
    std::path::absolute(path);
}

fn streams() {
    io::stdin();
    io::stdout();
    io::stderr();
    io::pipe();
    print!("");
    println!();
    eprint!("");
    eprintln!();
    dbg!(());
}

fn network() {
    net::ToSocketAddrs::to_socket_addrs("");
}

fn environment() {
    env::args();
    env::args_os();
    env::current_dir();
    env::current_exe();
    env::home_dir();
    unsafe { env::remove_var("") };
    env::set_current_dir("");
    unsafe { env::set_var("", "") };
    env::temp_dir();
    env::var("");
    env::var_os("");
    env::vars();
    env::vars_os();
}

fn processes(how: u8) {
    process::id();
    os::unix::process::parent_id();
    if how == 0 {
        process::abort();
    }
    process::exit(1)
}

fn threads() {
    thread::available_parallelism();
    thread::current();
    thread::park();
    thread::park_timeout(time::Duration::ZERO);
    thread::scope(|_| ());
    thread::sleep(time::Duration::ZERO);
    thread::spawn(|| ());
    thread::yield_now();
}

fn clocks() {
    time::Instant::now().elapsed();
    time::SystemTime::now().elapsed();
}
