//! Advice: that the kernel hears of it, and what it does then.

use std::fs;

use mmap_io::{MemoryMappedFile, MmapAdvice};

use crate::common::probe::{areas, cached, has_flag, has_huge_pages};
use crate::common::{block_on, on_a_disk, pattern, patterned, skip};

fn base(file: &MemoryMappedFile) -> *const u8 {
    // SAFETY: nothing is read through the pointer.
    unsafe { file.as_ptr() }
}

#[test]
fn advice_reaches_the_mapping() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        let has_huge_pages = has_huge_pages("advice_reaches_the_mapping");
        for (advice, flag) in [
            (MmapAdvice::Random, "rr"),
            (MmapAdvice::Sequential, "sr"),
            (MmapAdvice::HugePage, "hg"),
            (MmapAdvice::NoHugePage, "nh"),
        ] {
            if !has_huge_pages && ["hg", "nh"].contains(&flag) {
                continue;
            }
            // The start is rounded down to a page, and the end up.
            file.advise(5000, 10_000, advice).await.unwrap();
            let flags =
                [0, 4096, 12_288, 16_384].map(|at| has_flag(base(&file).wrapping_add(at), flag));
            assert_eq!(flags, [false, true, true, false], "{advice:?}");
            file.advise(0, 100_000, MmapAdvice::Normal).await.unwrap();
        }
    });
}

#[test]
fn dont_need_empties_the_mapping() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        const LEN: u64 = 20 << 20;
        let (_, file) = patterned(dir.path(), LEN as usize).await;
        file.touch_pages().await.unwrap();
        let resident = || {
            let areas = areas().into_iter();
            let of_file = areas.filter(|area| area.addresses.contains(&(base(&file) as usize)));
            of_file.map(|area| area.resident).sum::<u64>()
        };
        assert_eq!(resident(), LEN);
        let view = file.bytes(0, LEN).unwrap();
        file.advise(0, LEN, MmapAdvice::DontNeed).await.unwrap();
        assert_eq!(resident(), 0);
        assert!(view == pattern(LEN as usize));
    });
}

#[test]
fn page_out_frees_memory() {
    let dir = on_a_disk();
    block_on(async {
        const LEN: u64 = 20 << 20;
        let (path, file) = patterned(dir.path(), LEN as usize).await;
        file.touch_pages().await.unwrap();
        file.flush().await.unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
        assert_eq!(cached(&path, 0, LEN as usize), 5120);
        file.advise(0, LEN, MmapAdvice::PageOut).await.unwrap();
        // Some pages may be on lists of another processor.
        let left = cached(&path, 0, LEN as usize);
        if cfg!(target_pointer_width = "32") && left == 5120 {
            // The kernel aligns 64-bit addresses of large files.
            let reason = "a map that is not aligned to 2 MiB keeps its large folios";
            return skip("page_out_frees_memory", reason);
        }
        assert!(left < 2560, "{left} pages are left");
        assert!(file.slice(0, LEN).await.unwrap() == pattern(LEN as usize)[..]);
    });
}

#[cfg(feature = "locking")]
#[test]
fn dont_need_of_locked_pages_fails() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        file.lock(0, 4096).await.unwrap();
        let refused = file.advise(0, 100_000, MmapAdvice::DontNeed).await;
        assert!(
            matches!(refused, Err(mmap_io::MmapIoError::AdviceFailed(_))),
            "{refused:?}"
        );
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        for advice in [MmapAdvice::Cold, MmapAdvice::PageOut, MmapAdvice::WillNeed] {
            file.advise(0, 100_000, advice).await.unwrap();
        }
    });
}
