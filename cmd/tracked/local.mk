nbdmirror_SOURCES += \
	cmd/tracked/bitmaps.c \
	cmd/tracked/bitmaps.h \
	cmd/tracked/guardian.c \
	cmd/tracked/guardian.h \
	cmd/tracked/mirror-qmp.c \
	cmd/tracked/mirror-qmp.h \
	cmd/tracked/qemu-tracker.c \
	cmd/tracked/qemu-tracker.h
