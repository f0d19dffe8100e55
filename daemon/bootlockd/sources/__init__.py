"""Where holds are decided that this host keeps: files, Nova, a registry. One file each."""
