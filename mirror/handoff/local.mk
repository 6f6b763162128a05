libmirror_la_SOURCES += \
	mirror/handoff/checkpoint-disks.c \
	mirror/handoff/coordinator.c \
	mirror/handoff/coordinator.h \
	mirror/handoff/disk.c \
	mirror/handoff/disk.h \
	mirror/handoff/internal.h \
	mirror/handoff/later.c \
	mirror/handoff/seal-disks.c \
	mirror/handoff/seal-disks.h
