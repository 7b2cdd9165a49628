//! A real browser: headless Chromium plays a sound of 50 MB, seeks, reloads, and sees what replaces
//! it. Ignored by default; `tests/browser` installs the browser and runs it.

use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode};
use mmap_io_http::{MappedDir, MappedFile, ResponseBody};
use tower::{Service, ServiceExt};

use crate::server::{axum_tokio, boxed};
use crate::{modified, set_modified};

/// What the page does. It tells the server each step that it has done.
const PAGE: &str = r#"<!DOCTYPE html>
<title>page</title>
<audio src="/sound.wav" preload="metadata"></audio>
<script>
const tell = (step, value) => fetch(`/told?${step}=${value}`);
const audio = document.querySelector('audio');
const next = event => new Promise(resolve => audio.addEventListener(event, resolve, {once: true}));
audio.addEventListener('error', () => tell('error', audio.error.code));
const loaded = audio.readyState > 0 ? Promise.resolve() : next('loadedmetadata');
(async () => {
    await loaded;
    await tell('seconds', Math.round(audio.duration));
    audio.currentTime = audio.duration - 2;
    await next('seeked');
    const ended = next('ended');
    await audio.play();
    await ended;
    await tell('ended', Math.round(audio.currentTime));
    const text = async () => (await fetch('/text', {cache: 'no-cache'})).text();
    const before = await text();
    await text();
    await tell('text', before);
    // The server goes on when it has replaced both files.
    while (await text() === before) {}
    await tell('text', await text());
    if (sessionStorage.reloaded) return;
    sessionStorage.reloaded = true;
    location.reload();
})().catch(error => tell('error', error));
</script>
"#;

/// A request, and the status of its answer.
type Log = Arc<Mutex<Vec<(String, u16)>>>;

/// Answers `/told` itself, and leaves the rest to the files.
async fn answer(
    mut files: MappedDir,
    log: Log,
    told: Sender<String>,
    request: Request<()>,
) -> Result<Response<ResponseBody>, Infallible> {
    if request.uri().path() == "/told" {
        told.send(request.uri().query().unwrap().to_string())
            .unwrap();
        let none = MappedFile::new("/missing")
            .oneshot(Request::new(()))
            .await?;
        return Ok(none);
    }
    let path = request.uri().path().to_string();
    let mut response = ServiceExt::<Request<()>>::ready(&mut files)
        .await?
        .call(request)
        .await?;
    // The browser is to ask each time whether it has the file.
    let no_cache = HeaderValue::from_static("no-cache");
    response.headers_mut().insert("cache-control", no_cache);
    log.lock().unwrap().push((path, response.status().as_u16()));
    Ok(response)
}

/// Replaces a file by renaming, with a time that is long ago.
fn replace(path: &Path, content: impl FnOnce(&mut fs::File)) {
    let temporary = path.with_extension("temporary");
    let mut file = fs::File::create(&temporary).unwrap();
    content(&mut file);
    set_modified(&temporary, modified());
    fs::rename(temporary, path).unwrap();
}

/// Makes a sound of that many seconds: 16 bits, stereo, 44,100 Hz, silent.
fn sound(path: &Path, seconds: u32) {
    let len = seconds * 44_100 * 4;
    replace(path, |file| {
        let mut header = Vec::new();
        header.extend(b"RIFF");
        header.extend((len + 36).to_le_bytes());
        header.extend(b"WAVEfmt \x10\0\0\0\x01\0\x02\0");
        header.extend(44_100_u32.to_le_bytes());
        header.extend((44_100_u32 * 4).to_le_bytes());
        header.extend(b"\x04\0\x10\0data");
        header.extend(len.to_le_bytes());
        file.write_all(&header).unwrap();
        file.write_all(&vec![0; len as usize]).unwrap();
    });
}

fn text(path: &Path, text: &str) {
    replace(path, |file| file.write_all(text.as_bytes()).unwrap());
}

/// The browser, which ends with the test.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn browse(url: &str, profile: &Path) -> Browser {
    let browser = Command::new("chromium")
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
            "--no-first-run",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Browser(browser.expect("chromium (`tests/browser` installs it)"))
}

fn next(told: &Receiver<String>) -> String {
    told.recv_timeout(Duration::from_secs(120))
        .expect("the browser goes on")
}

#[test]
#[ignore = "needs Chromium, and takes seconds: run tests/browser"]
fn plays_seeks_and_reloads() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    text(&root.join("index.html"), PAGE);
    let (log, (tell, told)) = (Log::default(), mpsc::channel());
    let files = MappedDir::new(&root);
    let service = {
        let log = log.clone();
        tower::service_fn(move |request| answer(files.clone(), log.clone(), tell.clone(), request))
    };
    let server = axum_tokio(boxed(service));
    sound(&root.join("sound.wav"), 300);
    text(&root.join("text"), "first");
    let _browser = browse(
        &format!("http://{}/", server.address),
        &dir.path().join("profile"),
    );
    for (seconds, old, new) in [(300, "first", "second"), (200, "second", "third")] {
        assert_eq!(next(&told), format!("seconds={seconds}"));
        assert_eq!(next(&told), format!("ended={seconds}"));
        assert_eq!(next(&told), format!("text={old}"));
        sound(&root.join("sound.wav"), seconds - 100);
        text(&root.join("text"), new);
        assert_eq!(next(&told), format!("text={new}"));
        let log = std::mem::take(&mut *log.lock().unwrap());
        let count = |path: &str, status: StatusCode| {
            let asked = (path.to_string(), status.as_u16());
            log.iter().filter(|entry| **entry == asked).count()
        };
        // The end of the sound was asked for by itself.
        assert!(
            count("/sound.wav", StatusCode::PARTIAL_CONTENT) >= 2,
            "{log:?}"
        );
        // The browser has it already.
        assert!(count("/text", StatusCode::NOT_MODIFIED) >= 1, "{log:?}");
        if seconds == 200 {
            assert_eq!(count("/", StatusCode::NOT_MODIFIED), 1, "{log:?}");
        }
        println!("{} requests", log.len());
    }
}
