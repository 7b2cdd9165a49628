//! Runs the queries on a cluster of Ballista: a scheduler and two executors, each a process of its
//! own that reads files through a `MappedFileSystem` of its own.
//!
//! The processes are this program with other arguments. Each ends when its standard input does, so
//! that none outlives the program that started it.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballista::prelude::SessionContextExt;
use ballista_core::utils::default_session_builder;
use ballista_executor::executor_process::{start_executor_process, ExecutorProcessConfig};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;
use datafusion::error::DataFusionError;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionContext;
use mmap_io_object_store::MappedFileSystem;

use crate::queries::QUERIES;
use crate::{all_files, check, open_tables, run as run_query, Outcome};

/// How long the processes may take to start, and a query to end.
const PATIENCE: Duration = Duration::from_secs(60);

const HOST: &str = "127.0.0.1";

/// What a process of the cluster is.
pub(crate) enum Member {
    Scheduler {
        port: u16,
    },
    Executor {
        scheduler_port: u16,
        port: u16,
        grpc_port: u16,
        work_dir: String,
    },
}

/// A process of the cluster, which ends when this is dropped.
struct Process {
    child: Child,
}

/// Runs every query on a cluster, and compares its result with that of one process.
pub(crate) async fn run(data: &Path, expected: &[String]) -> Outcome<()> {
    let work = tempfile::tempdir()?;
    let [port, ports @ ..] = free_ports::<5>()?;
    let _scheduler = Process::start(&["scheduler".to_owned(), port.to_string()])?;
    wait_for(port).await?;
    let mut executors = Vec::new();
    for (number, ports) in ports.chunks(2).enumerate() {
        let work_dir = work.path().join(number.to_string());
        std::fs::create_dir(&work_dir)?;
        let arguments = [
            "executor".to_owned(),
            port.to_string(),
            ports[0].to_string(),
            ports[1].to_string(),
            work_dir.display().to_string(),
        ];
        executors.push(Process::start(&arguments)?);
        wait_for(ports[0]).await?;
    }
    let session = SessionContext::remote(&format!("df://{HOST}:{port}")).await?;
    open_tables(&session, Arc::new(MappedFileSystem::new()), data).await?;
    for (query, expected) in QUERIES.iter().zip(expected) {
        let clock = Instant::now();
        let found = tokio::time::timeout(PATIENCE, run_query(&session, query)).await??;
        println!("cluster {:20} {:.1?}", query.name, clock.elapsed());
        check(query, &found, expected)?;
    }
    for executor in executors {
        let (mapped, hits) = executor.end()?;
        println!("an executor has mapped {mapped} files, and read them {hits} times more");
        if mapped == 0 {
            return Err("an executor has read nothing through maps".into());
        }
    }
    println!("every result of the cluster is that of one process");
    Ok(())
}

impl Member {
    /// Returns what this process shall be; `None` if it is not one of a cluster.
    pub(crate) fn from_arguments(arguments: &[String]) -> Outcome<Option<Self>> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(match words[..] {
            ["scheduler", port] => Some(Self::Scheduler {
                port: port.parse()?,
            }),
            ["executor", scheduler_port, port, grpc_port, work_dir] => Some(Self::Executor {
                scheduler_port: scheduler_port.parse()?,
                port: port.parse()?,
                grpc_port: grpc_port.parse()?,
                work_dir: work_dir.to_owned(),
            }),
            _ => None,
        })
    }

    /// Serves until the standard input ends, and then prints how many files were mapped, and how
    /// many reads found a map.
    pub(crate) async fn serve(self) -> Outcome<()> {
        let store = MappedFileSystem::new();
        let of_process = store.clone();
        std::thread::spawn(move || {
            // An error ends the input as well.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            let stats = of_process.stats();
            // The program that started this process may have been killed: no output is an error.
            let _ = writeln!(io::stdout(), "{} {}", stats.mapped, stats.hits);
            std::process::exit(0);
        });
        match self {
            Self::Scheduler { port } => schedule(port, store).await,
            Self::Executor {
                scheduler_port,
                port,
                grpc_port,
                work_dir,
            } => {
                let directory = work_dir.clone();
                let config = ExecutorProcessConfig {
                    bind_host: HOST.to_owned(),
                    scheduler_host: HOST.to_owned(),
                    scheduler_port,
                    port,
                    grpc_port,
                    vcores: 1,
                    work_dir: Some(work_dir),
                    override_runtime_producer: Some(Arc::new(move |_| {
                        let builder = RuntimeEnvBuilder::new().with_temp_file_path(&directory);
                        let runtime = builder.build_arc()?;
                        register(&runtime, &store)?;
                        Ok(runtime)
                    })),
                    ..Default::default()
                };
                Ok(start_executor_process(Arc::new(config)).await?)
            }
        }
    }
}

/// Plans queries: the store lists the files of tables, and reads what is at their ends.
async fn schedule(port: u16, store: MappedFileSystem) -> Outcome<()> {
    let config = SchedulerConfig {
        bind_host: HOST.to_owned(),
        bind_port: port,
        override_session_builder: Some(Arc::new(move |config| {
            let state = default_session_builder(config)?;
            register(state.runtime_env(), &store)?;
            Ok(state)
        })),
        ..Default::default()
    };
    let cluster = BallistaCluster::new_from_config(&config).await?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(start_server(cluster, address, Arc::new(config)).await?)
}

/// Makes a runtime read local files through `store`.
fn register(runtime: &RuntimeEnv, store: &MappedFileSystem) -> Result<(), DataFusionError> {
    let files = all_files().map_err(DataFusionError::External)?;
    runtime.register_object_store(&files, Arc::new(store.clone()));
    Ok(())
}

impl Process {
    fn start(arguments: &[String]) -> Outcome<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self { child })
    }

    /// Ends the process, and returns how many files it has mapped, and how many reads found a map.
    fn end(mut self) -> Outcome<(u64, u64)> {
        drop(self.child.stdin.take());
        let output = self.child.stdout.take().ok_or("no output of a process")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let counts = line.trim().split_once(' ');
        let (mapped, hits) = counts.ok_or("a process of the cluster has ended too early")?;
        Ok((mapped.parse()?, hits.parse()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has ended, or does now.
        let _ = self.child.wait();
    }
}

/// Returns ports that are free at this moment, all of them different.
fn free_ports<const N: usize>() -> Outcome<[u16; N]> {
    let mut ports = [0; N];
    let mut listeners = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// Waits until a process accepts connections at the port.
async fn wait_for(port: u16) -> Outcome<()> {
    let clock = Instant::now();
    while let Err(error) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        if clock.elapsed() > PATIENCE {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
