//! object_store's own tests of stores, those that `LocalFileSystem` runs.

use mmap_io_object_store::MappedFileSystem;

use super::object_store::integration;

fn run(
    test: impl AsyncFnOnce(&MappedFileSystem),
    store: impl Fn(MappedFileSystem) -> MappedFileSystem,
) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(MappedFileSystem::new_with_prefix(dir.path()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(&store));
}

/// Makes a test of each function: once with maps, and once without room for any.
macro_rules! suite {
    ($($name:ident ( $($argument:expr),* )),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let test = async |store: &MappedFileSystem| {
                    integration::$name(store $(, $argument)*).await;
                };
                run(test, |store| store);
                run(test, |store| store.with_max_maps(0));
            }
        )*
    };
}

suite! {
    put_get_delete_list(),
    list_with_offset_exclusivity(),
    get_opts(),
    list_uses_directories_correctly(),
    list_with_delimiter(),
    rename_and_copy(),
    copy_if_not_exists(),
    copy_rename_nonexistent_object(),
    stream_get(),
    put_opts(false),
    // Beyond the ten of `LocalFileSystem`.
    multipart_race_condition(true),
    multipart_out_of_order(),
}
