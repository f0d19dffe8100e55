"""Where holds are decided that this host keeps: files, Nova, the fleet's registry. One file each."""
